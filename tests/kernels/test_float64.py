"""Where x64 is on, float64 leaves are computed in float64; 8-bit scales stay float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lamblion
from tests import oracles
from tests.kernels.codec_judge import level_error
from tests.kernels.step_judge import find_state

SIZE = 4097
HYPER = dict(learning_rate=1e-3, b1=0.9, b2=0.99, weight_decay=0.1)
STEPS = 3
# Float64 rounds at 1e-16. `1 - b2**t` loses a factor 30 of that, and decay may cancel a direction
# by a factor of 1000 somewhere in 4097 elements.
RTOL, ATOL = 1e-12, 1e-16


def observe(optimizer):
    """Parameters, the last gradient and update, and the state before and after that step."""
    rng = np.random.default_rng(0)
    tx = getattr(optax_lamblion, optimizer)(**HYPER)
    p = rng.normal(size=SIZE)
    state, update = tx.init(jnp.asarray(p)), jax.jit(tx.update)
    for _ in range(STEPS):
        g, before = rng.normal(size=SIZE), find_state(state)
        updates, state = update(jnp.asarray(g), state, jnp.asarray(p))
    assert updates.dtype == jnp.float64
    return p, g, np.asarray(updates), before, find_state(state)


def read(state, slot, signed):
    stored = np.asarray(getattr(state, slot))
    if stored.dtype == np.uint8:
        absmax = getattr(state, f"{slot}_absmax")
        assert absmax.dtype == jnp.float32
        return oracles.decode(stored, absmax, 256, "power", signed)
    assert stored.dtype == np.float64
    return stored


@pytest.mark.parametrize("optimizer", ["lion32bit", "lion8bit"])
def test_lion(optimizer):
    with jax.enable_x64(True):
        p, g, updates, before, after = observe(optimizer)
        step = oracles.lion_step(g, read(before, "mu", True), p, **HYPER)
        np.testing.assert_allclose(updates, step.update, RTOL, ATOL)
        if optimizer == "lion32bit":
            np.testing.assert_allclose(after.mu, step.mu, RTOL, ATOL)


@pytest.mark.parametrize("optimizer", ["lamb32bit", "lamb8bit"])
def test_lamb(optimizer):
    with jax.enable_x64(True):
        p, g, updates, before, after = observe(optimizer)
        mu, nu = read(before, "mu", True), read(before, "nu", False)
        new = oracles.lamb_moments(g, mu, nu, p, b1=HYPER["b1"], b2=HYPER["b2"])
        if optimizer == "lamb32bit":
            np.testing.assert_allclose(after.mu, new.mu, RTOL, ATOL)
            np.testing.assert_allclose(after.nu, new.nu, RTOL, ATOL)
        step = oracles.lamb_update(
            oracles.bias_corrected(read(after, "mu", True), HYPER["b1"], STEPS),
            oracles.bias_corrected(read(after, "nu", False), HYPER["b2"], STEPS),
            p, new.skipped, learning_rate=HYPER["learning_rate"], eps=1e-8,
            weight_decay=HYPER["weight_decay"],
        )  # fmt: skip
        if optimizer == "lamb32bit":
            np.testing.assert_allclose(updates, step.update, RTOL, ATOL)
        else:
            # The levels of the codes have float32 accuracy: in m, in v, and so in the ratio.
            level = level_error("power", True) + level_error("power", False)
            bound = HYPER["learning_rate"] * step.ratio * 2 * level * step.magnitude
            assert (abs(updates - step.update) <= bound).all()
