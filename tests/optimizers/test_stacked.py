"""`StateOptions.stacked`: layers of a stack are leaves of their own to norms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions, apply_fused, lamb, lamb8bit, lion8bit
from pallas_kernels.arithmetic.pieces import CUTTABLE, GRAIN
from tests.kernels.interpreted import interpreted
from tests.variants import VARIANTS, optax_lamb

LAYERS = 3
SHAPES = {"kernel": (LAYERS, 32, 512), "scale": (LAYERS, 20), "gain": (LAYERS,), "head": (64, 96)}
STACKED = frozenset({"kernel", "scale", "gain"})
OPTIONS = StateOptions(stacked=lambda path: path in STACKED)


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    # Layers that differ in size, so that a norm of all of them is another one.
    return {
        name: jnp.asarray(
            scale
            * rng.standard_normal(s)
            * (10.0 ** np.arange(s[0]).reshape(-1, *[1] * (len(s) - 1)))
            if name in STACKED
            else scale * rng.standard_normal(s),
            jnp.float32,
        )
        for name, s in SHAPES.items()
    }


def apart(params):
    """The same model with a leaf for every layer."""
    out = {"head": params["head"]}
    for name in STACKED:
        out |= {f"{name}{i}": params[name][i] for i in range(LAYERS)}
    return out


def together(params):
    out = {"head": params["head"]}
    for name in STACKED:
        out[name] = jnp.stack([params[f"{name}{i}"] for i in range(LAYERS)])
    return out


def run(tx, params, grads, convert=lambda x: x):
    p = convert(params)
    state = tx.init(p)
    for g in grads:
        p, state = apply_fused(tx, p, convert(g), state)
    return p, state


GRADS = [tree(i, 0.1) for i in range(1, 4)]


def test_lamb_is_optax_lamb_of_the_layers():
    tx = lamb(1e-2, eps=1e-6, weight_decay=0.1, options=OPTIONS)
    p, _ = run(tx, tree(0), GRADS)
    oracle = optax_lamb(learning_rate=1e-2, weight_decay=0.1)
    expected = apart(tree(0))
    state = oracle.init(expected)
    for g in GRADS:
        updates, state = oracle.update(apart(g), state, expected)
        expected = optax.apply_updates(expected, updates)
    expected = together(expected)
    for name in SHAPES:
        np.testing.assert_allclose(p[name], expected[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kwargs", [{}, dict(max_unorm=0.1), dict(trust_clip=(0.1, 2.0))])
@pytest.mark.parametrize("bits", [8, 32])
def test_it_is_lamb_of_the_layers(bits, kwargs):
    """Of leaves in 32 bits; in 8, rounding depends on a leaf's name and a block's number in it."""
    make = lamb8bit if bits == 8 else lamb
    p, state = run(make(1e-2, weight_decay=0.1, options=OPTIONS, **kwargs), tree(0), GRADS[:1])
    q, _ = run(make(1e-2, weight_decay=0.1, **kwargs), tree(0), GRADS[:1], apart)
    q = together(q)
    for name in SHAPES:
        x, y, start = (np.asarray(t[name], np.float64) for t in (p, q, tree(0)))
        tolerance = 0.02 if bits == 8 and name == "kernel" else 1e-6
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(x - start), name
    if bits == 8:
        assert state.nu["kernel"].dtype == jnp.uint8


@pytest.mark.parametrize("make", [lion8bit, lamb])
def test_clipping_has_a_history_for_every_layer(make):
    tx = make(1e-3, percentile_clipping=5, options=OPTIONS)
    p, state = run(tx, tree(0), GRADS)
    q, other = run(make(1e-3, percentile_clipping=5), tree(0), GRADS, apart)
    assert state.gnorm_history["kernel"].shape == (LAYERS, 100)
    assert state.gnorm_history["head"].shape == (100,)
    expected = together(jax.tree.map(lambda x: x, other.gnorm_history))
    for name in SHAPES:
        np.testing.assert_allclose(state.gnorm_history[name], expected[name], rtol=1e-6)
        off = ~np.isclose(p[name], together(q)[name], rtol=1e-5, atol=1e-6)
        # Momentum in 8 bits is rounded by the names of leaves and the numbers of blocks: after two
        # steps that turns 0.2 % of the signs.
        assert np.mean(off) < (0.01 if make is lion8bit and name == "kernel" else 1e-9), name


def test_a_stack_is_not_its_layers_by_default():
    p, _ = run(lamb(1e-2, weight_decay=0.1), tree(0), GRADS[:1])
    q, _ = run(lamb(1e-2, weight_decay=0.1, options=OPTIONS), tree(0), GRADS[:1])
    assert {name for name in SHAPES if not np.array_equal(p[name], q[name])} == STACKED


@pytest.mark.parametrize("clip", [None, 5])
def test_kernels_do_what_xla_does(clip):
    tx = lamb8bit(1e-2, weight_decay=0.1, percentile_clipping=clip, options=OPTIONS)
    rng = np.random.default_rng(0)
    p = {
        "kernel": jnp.asarray(
            rng.standard_normal((3, 32, 256)) * np.array([1, 9, 81]).reshape(3, 1, 1), jnp.float32
        )
    }
    g = jax.tree.map(lambda x: x[::-1] / 7, p)
    expected, state = apply_fused(tx, p, g, tx.init(p))
    with interpreted():
        out, state_of_kernels = apply_fused(tx, p, g, tx.init(p))
        updates, _ = tx.update(g, tx.init(p), p)
    same = True
    for slots in ((state.mu, state_of_kernels.mu), (state.nu, state_of_kernels.nu)):
        codes, codes_of_kernels = (np.asarray(slot["kernel"], int) for slot in slots)
        off = np.minimum(
            *((a - b) % 256 for a, b in itertools.permutations([codes, codes_of_kernels]))
        )
        # The ladders of kernels may turn a thousandth of the gap from where others do, to either
        # side. A scale of the gradient is worked out in another order.
        assert off.max() <= 1 and np.count_nonzero(off) <= off.size * (0.01 if clip else 0.002)
        same &= off == 0
    for x in (out["kernel"], p["kernel"] + updates["kernel"]):
        np.testing.assert_allclose(x[same], expected["kernel"][same], rtol=1e-5, atol=1e-5)


def large(seed):
    rng = np.random.default_rng(seed)
    size = CUTTABLE // 2
    p = rng.standard_normal((3, size // 256, 256)) * np.array([1, 9, 81]).reshape(3, 1, 1)
    return {"kernel": jnp.asarray(p, jnp.float32)}


PIECES = [
    pytest.param(
        v, clip, kernels, id=f"{v.name}-{clip}{'-kernels' if kernels else ''}", marks=marks
    )
    for v in VARIANTS
    if v.name in ("paged_lamb8bit", "paged_lamb32bit")
    for clip in (5, None)
    for kernels in {False, v.bits == 8}
    for marks in [() if v.bits == 32 and clip else pytest.mark.long]
]


@pytest.mark.parametrize(("v", "clip", "kernels"), PIECES)
def test_pieces_are_of_several_layers(v, clip, kernels):
    """A paged stack is cut where grains end, wherever its layers do; as a whole it steps alike."""
    options = StateOptions(page_bytes=2**20, stacked=lambda path: True)
    paged = v(options=options, percentile_clipping=clip)
    resident = v.resident(options=StateOptions(stacked=lambda path: True), percentile_clipping=clip)
    p, g = large(0), large(1)
    assert p["kernel"].size // 3 % GRAIN == 0
    expected = jax.jit(lambda: apply_fused(resident, p, g, resident.init(p)))()
    if kernels:
        with interpreted():
            out = apply_fused(paged, p, g, paged.init(p))
    else:
        out = jax.jit(lambda: apply_fused(paged, p, g, paged.init(p)))()
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(out), strict=True):
        # Where a second moment lies right between two codes, kernels may round it to the other one.
        # A step with its root is another one, too.
        off = np.mean(~np.isclose(np.asarray(x, np.float32), y, rtol=1e-5, atol=1e-5))
        assert off <= (1e-4 if kernels else 0)


def test_trees_of_bools_and_bad_ones():
    by_tree = {name: name in STACKED for name in SHAPES}
    p, _ = run(lamb(1e-2, options=StateOptions(stacked=by_tree)), tree(0), GRADS[:1])
    q, _ = run(lamb(1e-2, options=OPTIONS), tree(0), GRADS[:1])
    assert all(np.array_equal(p[name], q[name]) for name in SHAPES)
    with pytest.raises(ValueError, match="`stacked` must be a tree of bools"):
        lamb(options=StateOptions(stacked={"kernel": True})).update(
            GRADS[0], lamb().init(tree(0)), tree(0)
        )


def test_a_scalar_is_no_stack():
    p = {"gain": jnp.float32(1.0)}
    with pytest.raises(ValueError, match="names 'gain', which has no axis of layers"):
        lamb(options=StateOptions(stacked=lambda path: True)).init(p)
