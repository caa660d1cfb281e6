"""What the contract tests optimize: a small tree whose leaves exercise every layout of state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {
    "rows": (16, 256),  # the scales have the parameter's rank
    "odd_tail": (4097,),  # flat scales, a short last block
    "small": (33,),  # too small for 8 bits
}
LARGE = ("rows", "odd_tail")
"""Leaves that an 8-bit optimizer stores in 8 bits."""
FEW = ("rows", "small")
"""One leaf of each kind, where layouts do not matter and compiling does."""


def tree(seed, dtype=jnp.float32, shapes=None):
    """Normal numbers in the shapes of the problem, the same for every dtype up to rounding."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def params(dtype=jnp.float32, only=tuple(SHAPES)):
    """Where optimization starts."""
    p = tree(0, dtype)
    return {name: p[name] for name in only}


def grads(step=1, dtype=jnp.float32, only=tuple(SHAPES)):
    """The gradient of one step; different in every step."""
    g = tree(100 + step, dtype)
    return {name: g[name] for name in only}


def committed(tree):
    """A tree of arrays committed to their device, as those are that a step with a paged state
    returns: so the first step is compiled for what the next ones get."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)


@functools.cache
def compiled(v):
    """The variant with its own arguments, and its jitted update: shared by all tests."""
    tx = v()
    return tx, jit_update(tx)


def jit_update(tx):
    """A jitted `tx.update` with a compilation cache of its own."""
    return jax.jit(lambda updates, state, params: tx.update(updates, state, params))


def run(tx, steps, update=None, start=None, first=1):
    """Takes some steps and returns the parameters, the state and the last updates.

    Eager unless a jitted `update` is given: the step of a leaf is jitted inside, and so compiled
    once for all optimizers that differ in numbers only.
    """
    update = tx.update if update is None else update
    p, state = (params(), None) if start is None else start
    state = tx.init(p) if state is None else state
    updates = None
    for step in range(first, first + steps):
        updates, state = update(grads(step, only=tuple(p)), state, p)
        p = optax.apply_updates(p, updates)
    return p, state, updates


# ------------------------------------------------------------------------------- comparisons


def kinds(tree):
    """Shape and dtype of every leaf, concrete or not, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (x.shape, jnp.dtype(x.dtype)) for path, x in leaves}


def assert_same_kinds(a, b):
    """Two trees have the same structure, shapes and dtypes."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert kinds(a) == kinds(b)


def assert_equal(a, b):
    """Two trees have the same structure, dtypes and bits."""
    assert_same_kinds(a, b)
    for (path, _, x), (_, _, y) in _pairs(a, b):
        assert x.tobytes() == y.tobytes(), f"{path} differs in {np.sum(x != y)} of {x.size}"


def assert_near(a, b, rtol):
    """Two trees of one structure agree but for float rounding.

    XLA contracts multiply-adds differently in different programs, which can push a value over the
    middle between two codes. So codes may be neighbours, rarely, and where they are, the update
    that belongs to them is not compared. Floats are compared relative to their array's largest.
    """
    assert_same_kinds(a, b)
    flipped = {}
    for (path, leaf, x), (_, _, y) in _pairs(a, b):
        if x.dtype == np.uint8:
            kind = np.int8 if ".mu" in path else np.uint8  # two's complement: -1 is beside 0
            apart = np.abs(x.view(kind).astype(int) - y.view(kind).astype(int))
            assert apart.max(initial=0) <= 1, f"codes {path} are {apart.max()} apart"
            # Only values within `rtol` of a middle may flip.
            assert np.mean(apart > 0) < 0.005, f"{np.sum(apart > 0)} codes differ in {path}"
            flipped[leaf, x.shape] = flipped.get((leaf, x.shape), False) | (apart > 0)
    for (path, leaf, x), (_, _, y) in _pairs(a, b):
        if x.dtype != np.uint8:
            same = ~np.broadcast_to(flipped.get((leaf, x.shape), False), x.shape)
            atol = rtol * float(np.max(np.abs(y), initial=0))
            np.testing.assert_allclose(x[same], y[same], rtol=rtol, atol=atol, err_msg=path)


def _pairs(a, b):
    """Pairs of `(path, last step of the path, array)` of two trees of one structure."""

    def leaves(tree):
        return [
            (jax.tree_util.keystr(path), path[-1] if path else None, np.asarray(x))
            for path, x in jax.tree.leaves_with_path(tree)
        ]

    return zip(leaves(a), leaves(b), strict=True)
