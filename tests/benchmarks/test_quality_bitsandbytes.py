"""The emulation of bitsandbytes that trainings use does what another judge says of CUDA."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality import bitsandbytes
from tests import oracles
from tests.interop import cuda_steps

TABLES = {signed: np.float64(oracles.bitsandbytes_map(signed)) for signed in (True, False)}


def values(size, signed, seed=0):
    """Of many scales, with exact zeros and, in a block of its own, nothing else."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1, 1] if signed else [1], size) * 10.0 ** rng.uniform(-8, 0, size)
    x[::7] = 0
    x[:2048] = 0
    return np.float32(x)


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_bitsandbytes(signed):
    # Its own, by `linspace`, differs by 2 ulp between processors.
    np.testing.assert_allclose(bitsandbytes.code_map(signed), TABLES[signed], rtol=3e-7)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("block_size", [256, 2048])
def test_codes_are_those_of_cuda(block_size, signed):
    x = values(2048 + 10_001, signed)
    codes, absmax = bitsandbytes.quantize(jnp.asarray(x), block_size, signed)
    codes = np.asarray(codes).ravel()[: x.size]
    # The default `slack`: where a value is that near to two codes, float32 decides.
    exact = cuda_steps.quantize(x, TABLES[signed], block_size, signed)
    right = cuda_steps.allowed(codes, exact, TABLES[signed], block_size, sign_rule=signed)
    assert right.all()
    np.testing.assert_array_equal(np.asarray(absmax).ravel(), np.float32(exact.absmax))
    assert np.mean(codes[2048:] == exact.codes[2048:]) > 0.999  # ties are rare


@pytest.mark.parametrize("signed", [True, False])
def test_codes_by_look_ups_are_those_of_a_search(signed):
    middles = bitsandbytes._middles(signed)
    bits = np.random.default_rng(0).integers(0, 2**32, 10**6, dtype=np.uint32)
    beside = [np.nextafter(middles, np.float32(x)) for x in (-2, 2)]
    y = np.concatenate([bits.view(np.float32), middles, *beside, np.float32([-1, 0, 1])])
    y = y[np.abs(y) <= 1] if signed else y[(y >= 0) & (y <= 1)]
    codes = bitsandbytes._nearest(jnp.asarray(y), signed)
    np.testing.assert_array_equal(codes, np.searchsorted(middles, y))


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_read_back_is_what_codes_mean(signed):
    x = values(3000, signed).reshape(30, 100)
    read = bitsandbytes.stored(jnp.asarray(x), 256, signed)
    exact = cuda_steps.quantize(x, TABLES[signed], 256, signed)
    # A level is off by 2 ulp, and the product by a rounding.
    np.testing.assert_allclose(read, exact.value, rtol=1e-6, atol=0)


def test_second_moments_may_be_stored_as_zero():
    v = jnp.array([1.0, 1e-7])
    assert bitsandbytes.stored(v, 256, False).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("rule", ["lion", "adam"])
def test_steps_are_those_of_cuda(rule):
    rng = np.random.default_rng(1)
    grads = np.float32(rng.normal(size=(5, 5000)) * 10.0 ** rng.uniform(-3, 0, 5000))
    tx = {"lion": bitsandbytes.scale_by_lion(), "adam": bitsandbytes.scale_by_adam()}[rule]
    state = tx.init(jnp.zeros(5000))
    p = np.zeros(5000)
    for t, g in enumerate(grads):
        before = state
        direction, state = tx.update(jnp.asarray(g), state)
        # Every step starts from the state that is judged, so that a tie does not drive them apart.
        old_v = None if before.nu is None else np.float64(before.nu)
        slots = cuda_steps.Slots(t, np.float64(before.mu), old_v, 256)
        if rule == "lion":
            step = cuda_steps.lion8(
                p, g, slots, lr=1.0, betas=(0.9, 0.99), table=TABLES[True], dtype=None
            )
        else:
            step = cuda_steps.adam8(
                p, g, slots, lr=1.0, betas=(0.9, 0.999), tables=(TABLES[True], TABLES[False]),
                dtype=None,
            )  # fmt: skip
            near = np.isclose(state.nu, step.v.value, rtol=1e-6, atol=0)
            assert near.mean() > 0.999  # the rest are ties
        np.testing.assert_allclose(direction, -step.p, rtol=1e-4, atol=1e-6)
        assert np.isclose(state.mu, step.m.value, rtol=1e-6, atol=0).mean() > 0.999


def test_small_leaves_stay_float32():
    g = jnp.linspace(1.0, 2.0, 100)
    tx = bitsandbytes.scale_by_lion(min_8bit_size=101)
    _, state = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(state.mu, (1 - 0.99) * g)


def test_lamb_has_the_trust_ratio_of_the_paper():
    g, p = jnp.linspace(-1.0, 1.0, 4096), jnp.full(4096, 2.0)
    tx = bitsandbytes.scale_by_lamb(weight_decay=0.1)
    direction, _ = tx.update(g, tx.init(p), p)
    assert np.linalg.norm(direction) == pytest.approx(np.linalg.norm(p), rel=1e-5)
