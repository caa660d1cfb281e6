"""States that somebody has changed on the way: none is taken for what it is not.

A change of one leaf is refused by name; or it makes no difference to the step; or, where shapes and
dtypes cannot tell and nothing is known while a program is traced, the step is NaN, which is seen.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from optax_lamblion import (
    StateOptions,
    adamw8bit,
    convert_state,
    lamb8bit,
    lamb32bit,
    lion8bit,
    lion32bit,
    paged_lion8bit,
)

SHAPES = {"rows": (16, 256), "one_block": (256,), "bias": (5,)}
"""In 8 bits, but for the last one."""

OPTIONS = dict(min_8bit_size=256)

OPTIMIZERS = {
    "lion8bit": lion8bit(**OPTIONS),
    "lion8bit-linear": lion8bit(**OPTIONS, options=StateOptions(codec="linear", block_size=64)),
    "lion8bit-tensor": lion8bit(**OPTIONS, block_wise=False),
    "lion32bit": lion32bit(percentile_clipping=5),
    "lamb8bit-amsgrad": lamb8bit(**OPTIONS, amsgrad=True),
    "lamb32bit": lamb32bit(),
    "adamw8bit": adamw8bit(
        **OPTIONS, percentile_clipping=5, options=StateOptions(count_skipped=True)
    ),
    "paged_lion8bit": paged_lion8bit(**OPTIONS),
}

DTYPES = (
    np.bool_, np.int8, np.uint8, np.int32, np.int64, np.float16, ml_dtypes.bfloat16, np.float32,
    np.float64, np.complex64,
)  # fmt: skip

CHANGES = {
    **{f"as {np.dtype(x).name}": functools.partial(np.asarray, dtype=x) for x in DTYPES},
    "one more axis": lambda x: x[None],
    "twice": lambda x: np.stack([x, x]),
    "flat": lambda x: x.reshape(-1),
    "turned": lambda x: x.T,
    "cut": lambda x: x[..., :-1] if x.ndim else x[None][:0],
    "negative": lambda x: x if x.dtype == np.uint8 else -1 - np.abs(x),
    "nothing": lambda x: None,
    "a number": lambda x: float(x.reshape(-1)[0]),
}


def values(seed):
    # Large enough for a momentum that is cast to whole numbers not to be that of a fresh state.
    rng = np.random.default_rng(seed)
    return {k: np.float32(900 + rng.normal(size=shape)) for k, shape in SHAPES.items()}


@functools.cache
def after_two_steps(name):
    """`(parameters, state)`, of which every moment is used."""
    tx, p = OPTIMIZERS[name], values(0)
    state = tx.init(jax.tree.map(jnp.asarray, p))
    step = jax.jit(tx.update)
    for seed in (1, 2):
        _, state = step(values(seed), state, p)
    return p, jax.tree.map(np.asarray, state)


def tampered(state):
    """`(what was changed, field, state)` for every leaf and change."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    for i, (path, x) in enumerate(leaves):
        for change, make in CHANGES.items():
            changed = [y for _, y in leaves]
            with np.errstate(all="ignore"):
                changed[i] = make(x)
            field = path[0].name.removesuffix("_absmax")
            yield f"{jax.tree_util.keystr(path)} {change}", field, tree.unflatten(changed)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def is_seen(updates):
    return any(np.isnan(x).any() for x in jax.tree.leaves(updates))


def refused(call, field):
    """What a call returns; None if it is refused, by an error of ours that names the field."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError) and field in str(error), error
        return None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_step_takes_it_for_what_it_is_not(name):
    tx, (p, state), g = OPTIMIZERS[name], after_two_steps(name), values(3)
    step = jax.jit(tx.update)
    expected, _ = step(g, state, p)
    for what, field, changed in tampered(state):
        out = refused(lambda changed=changed: jax.eval_shape(tx.update, g, changed, p), field)
        if out is None:
            continue
        updates, _ = step(g, changed, p)
        # A state of which a leaf is negative is another one, and as good; but no count is.
        other = what.endswith("negative") and field != "count"
        assert other or same(updates, expected) or is_seen(updates), what


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_conversion_takes_it_for_what_it_is_not(name):
    tx, (p, state) = OPTIMIZERS[name], after_two_steps(name)
    for what, field, changed in tampered(state):
        out = refused(lambda changed=changed: convert_state(changed, p, tx), field)
        if out is None or same(out, state) or what.endswith("negative"):
            continue
        # Numbers in fewer bits are numbers; from the optimizers of Optax they come so.
        assert what.endswith(("float16", "bfloat16")) and field in (
            "mu",
            "nu",
            "nu_max",
        ), what
