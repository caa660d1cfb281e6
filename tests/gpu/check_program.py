"""Whole optimizers as users call them: which code ran, and that every way to call it agrees."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused
from tests.gpu.records import Skipped
from tests.kernels.interpreted import interpreted

OPTIMIZERS = ("lion8bit", "lamb8bit", "adamw8bit")
# With a rest after the last tile, without, one that stays in 32 bits, and one of fewer elements
# than a tile would have if it were not.
SHAPES = {"rows": (64, 512), "odd": (5003,), "kernel": (3, 3, 16, 64), "bias": (512,)}
KERNELS = {  # by optimizer and whether parameters are returned
    ("lion8bit", True): ("lion_step",),
    ("lion8bit", False): ("lion_signs",),
    ("lamb8bit", True): ("lamb_moments", "lamb_apply"),
    ("lamb8bit", False): ("lamb_moments",),
    ("adamw8bit", True): ("adam_step",),
    ("adamw8bit", False): ("adam_moments",),
}


def checks(run):
    """`(name, function)` for each claim about each optimizer."""
    for claim in (_fused, _same_bits, _scan, _vmap, _chain, _clip, _non_finite):
        for name in OPTIMIZERS:
            for dtype in ("bfloat16", "float32"):
                if run.quick and dtype == "float32" or run.tiny and claim not in (_fused, _vmap):
                    continue
                title = f"{(claim.__doc__ or '').splitlines()[0].rstrip('.')}: {name} {dtype}"
                yield title, functools.partial(_with_kernels, run, claim, name, dtype)
    for (name, fused), kernels in KERNELS.items():
        for implementation in (None, "mosaic", "xla"):
            expected = () if implementation == "xla" else kernels
            yield (
                f"{implementation} runs {' '.join(expected) or 'XLA'}: {name} {fused=}",
                functools.partial(dispatch, run, name, fused, implementation, expected),
            )


def _with_kernels(run, claim, name, dtype):
    if run.interpret and claim is _same_bits:
        raise Skipped("the interpreter has no order of its own")
    with interpreted() if run.interpret else contextlib.nullcontext():
        options = StateOptions(implementation=None if run.interpret else "mosaic")
        tx = getattr(optax_lamblion, name)(2.0**-7, weight_decay=0.1, options=options)
        return claim(tx, dtype)


def _tree(seed, dtype, scale):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), dtype)
        for name, shape in SHAPES.items()
    }


def params_and_grads(dtype, steps=3):
    """Parameters, and the gradients of some steps."""
    return _tree(0, dtype, 1.0), [_tree(1 + i, dtype, 2.0**-6) for i in range(steps)]


def plain(tx):
    """A step by update and apply: `(params, state)`."""

    def step(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def same(a, b, what):
    """Raises `AssertionError` unless two trees have the same bits."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert x.dtype == y.dtype and x.shape == y.shape
        x, y = (np.atleast_1d(np.asarray(v)).view(np.uint8) for v in (x, y))
        where = jax.tree_util.keystr(path)
        assert (x == y).all(), f"{what}: {where} differs in {(x != y).sum()} of {x.size} bytes"


def _fused(tx, dtype):
    """Fused is update and apply, but for rounding."""
    params, grads = params_and_grads(dtype)
    state, worst = tx.init(params), 0.0
    fused = jax.jit(functools.partial(apply_fused, tx))
    by_update = jax.jit(plain(tx))
    for g in grads:
        expected, expected_state = by_update(params, g, state)
        got, got_state = fused(params, g, state)
        same(got_state, expected_state, "state")
        for name, x in got.items():
            ulp = float(jnp.finfo(x.dtype).eps)
            old, x, y = (
                np.asarray(v[name].astype(jnp.float32), np.float64) for v in (params, got, expected)
            )
            # A unit in the last place of the larger one of old and new parameter.
            unit = ulp * 2.0 ** np.floor(np.log2(np.maximum(np.abs(old), np.abs(y)) + 1e-30))
            allowed = 2 * unit + _ROUNDINGS * float(jnp.finfo(jnp.float32).eps) * np.abs(y - old)
            worst = max(worst, float((np.abs(x - y) / allowed).max()))
        params, state = got, got_state
    assert worst <= 1, f"parameters differ by {worst:.3g} of what is allowed"
    return {"worst_of_bound": worst}


_ROUNDINGS = 16
"""Of an update of LAMB or AdamW, in float32: kernel and XLA multiply out levels, which are third
powers, and eighth powers of which roots are taken, in another order, and divide in another way."""


def _steps(tx, params, grads, wrap=jax.jit, **extra):
    step = wrap(functools.partial(apply_fused, tx, **extra))
    state = tx.init(params)
    for g in grads:
        params, state = step(params, g, state)
    return params, state


def _same_bits(tx, dtype):
    """A second run has the same bits."""
    params, grads = params_and_grads(dtype)
    # Large enough that thread blocks finish in another order every time.
    for tree in (params, *grads):
        tree["large"] = jnp.tile(tree["rows"], (64, 4))
    first = _steps(tx, params, grads)
    for _ in range(3):
        same(_steps(tx, params, grads), first, "second run")


def _scan(tx, dtype):
    """A scan is its steps one by one."""
    params, grads = params_and_grads(dtype)
    expected = _steps(tx, params, grads)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state, grads):
        def step(carry, g):
            return apply_fused(tx, carry[0], g, carry[1]), None

        return jax.lax.scan(step, (params, state), grads)[0]

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    state = jax.jit(tx.init)(params)
    _close(run(jax.tree.map(jnp.copy, params), state, stacked), expected, "scan")


def _vmap(tx, dtype):
    """A vmap is its members one by one."""
    params, grads = params_and_grads(dtype, 2)
    # Two members with gradients of their own; parameters are the same at first.
    both = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    state = jax.vmap(tx.init)(two)
    for fused in (True, False):
        step = functools.partial(apply_fused, tx) if fused else plain(tx)
        got = jax.jit(jax.vmap(step))(two, both, state)
        for i, g in enumerate(grads):
            expected = jax.jit(step)(params, g, tx.init(params))
            member = jax.tree.map(lambda x, i=i: x[i], got)
            _close(member, expected, f"member {i}, {fused=}")


def _close(a, b, what):
    """The same codes; other numbers up to what XLA's choice of fusions makes of some steps.

    It may sum norms in another order, and round the leaves in 32 bits elsewhere.
    """
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        where = f"{what}: {jax.tree_util.keystr(path)}"
        if jnp.issubdtype(x.dtype, jnp.integer):
            off = np.asarray(x) != np.asarray(y)
            assert not off.any(), f"{where} differs in {off.sum()} of {off.size} elements"
        else:
            eps = float(jnp.finfo(x.dtype).eps)
            x, y = (np.asarray(v.astype(jnp.float32)) for v in (x, y))
            rtol = max(2 * eps, 16 * 2.0**-23)
            np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7, err_msg=where)


def _chain(tx, dtype):
    """It works in optax.chain, donated."""
    params, grads = params_and_grads(dtype)
    expected = _steps(tx, params, grads)[0]
    _close(
        _donated(optax.chain(optax.clip_by_global_norm(1e9), tx), params, grads), expected, "chain"
    )


def _clip(tx, dtype):
    """A scale of all gradients is a scalar of the kernels."""
    params, grads = params_and_grads(dtype)
    scale = 2.0**-6  # by which no gradient is rounded, in a kernel or before it
    scaled = jax.tree.map(lambda g: g * jnp.asarray(scale, g.dtype), grads)
    chained = optax.chain(optax_lamblion.clip_by_global_norm(1e9), tx)
    got = _donated(chained, params, grads, grad_scale=jnp.float32(scale))
    _close(got, _steps(tx, params, scaled)[0], "scaled")


def _donated(tx, params, grads, **extra):
    wrap = functools.partial(jax.jit, donate_argnums=(0, 2))
    return _steps(tx, jax.tree.map(jnp.copy, params), grads, wrap, **extra)[0]


def _non_finite(tx, dtype):
    """Non-finite gradients leave no trace."""
    params, grads = params_and_grads(dtype)
    poison = {3: jnp.nan, 300: jnp.inf, 301: -jnp.inf, 4700: jnp.nan}
    for g in grads[1:]:
        flat = g["odd"]
        for at, value in poison.items():
            flat = flat.at[at].set(value)
        g["odd"] = flat
    before, _ = _steps(tx, params, grads[:1])
    after, state = _steps(tx, params, grads)
    for x in jax.tree.leaves((after, state)):
        assert np.isfinite(np.asarray(x.astype(jnp.float32))).all()
    at = list(poison)
    old, new = (np.asarray(x["odd"].astype(jnp.float32)) for x in (before, after))
    assert (old[at] == new[at]).all(), "a parameter without a usable gradient moved"
    moved = np.delete(old != new, at).mean()
    assert moved > (0.5 if dtype == "bfloat16" else 0.99), f"only {moved:.1%} moved"
    return {"moved": float(moved)}


def dispatch(run, name, fused, implementation, expected):
    if run.interpret:
        raise Skipped("what a GPU would run is compiled for a GPU only")
    tx = getattr(optax_lamblion, name)(1e-3, options=StateOptions(implementation=implementation))
    params, (grads,) = params_and_grads("bfloat16", 1)
    step = functools.partial(apply_fused, tx) if fused else plain(tx)
    text = jax.jit(step).lower(params, grads, tx.init(params)).compile().as_text() or ""
    every = sorted({kernel for kernels in KERNELS.values() for kernel in kernels})
    found = tuple(kernel for kernel in every if f"/{kernel}/" in text)
    assert found == tuple(sorted(expected)), f"the program has {found or 'no kernels'}"
    return {"kernels": list(found)}
