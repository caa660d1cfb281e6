"""What eight bits cost: each claim of the README about the accuracy of the state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import LambState, StateOptions, scale_by_lamb, scale_by_lion
from pallas_kernels import dequantize

ELEMENTS = 65_536


def gradients(seed, steps, sigma, elements=ELEMENTS, scale=1.0):
    """Gradients whose elements have log-normal scales of their own; `sigma=0` is i.i.d. normal."""
    rng = np.random.default_rng(seed)
    per_element = np.exp(sigma * rng.standard_normal(elements))
    noise = rng.standard_normal((steps, elements))
    return jnp.asarray(scale * per_element * noise, jnp.float32)


def run(tx, grads, params=None):
    """Applies `tx` to a sequence of gradients: the last update and the last state."""
    params = jnp.ones_like(grads[0]) if params is None else params

    @jax.jit
    def scan(grads):
        def body(carry, g):
            updates, state = tx.update(g, carry[1], params)
            return (updates, state), None

        return jax.lax.scan(body, (jnp.zeros_like(params), tx.init(params)), grads)[0]

    return scan(grads)


def sign_disagreement(grads, **options):
    """The share of Lion's directions that 8-bit momentum turns, on the same gradients."""
    exact, _ = run(scale_by_lion(bits=32), grads)
    coded, _ = run(scale_by_lion(bits=8, options=StateOptions(**options)), grads)
    return float(jnp.mean(exact != coded))


# 0.53 % and 1.04 % were expected from a prototype of the codec; the bounds leave a tenth for
# another seed (the standard error with a million elements is below 0.01 %).
@pytest.mark.parametrize(("sigma", "bound"), [(0.0, 0.006), (1.0, 0.012)])
def test_eight_bit_momentum_turns_few_signs(sigma, bound):
    assert sign_disagreement(gradients(0, 50, sigma, elements=2**20)) < bound


def test_the_power_codec_turns_fewer_signs_than_the_dynamic_map():
    grads = gradients(0, 50, 0.0)
    assert sign_disagreement(grads) < 0.9 * sign_disagreement(grads, codec="dynamic")


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_lion_does_not_depend_on_the_scale_of_the_gradients(scale):
    same, _ = run(scale_by_lion(bits=8), gradients(0, 50, 1.0))
    scaled, _ = run(scale_by_lion(bits=8), gradients(0, 50, 1.0, scale=scale))
    # The scale is no power of two: products round differently, and a value within rounding of a
    # midpoint (one in 1e5 or fewer) may take the other code and, rarely, turn a sign.
    assert float(jnp.mean(same != scaled)) < 1e-4


def directions(state: LambState, b1=0.9, b2=0.999, eps=1e-8):
    """Bias-corrected m / (sqrt(v) + eps) of a one-leaf state, from what is stored."""
    t = float(state.count)
    m, v = moments(state)
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def moments(state):
    if state.mu.dtype != jnp.uint8:
        return np.float64(state.mu), np.float64(state.nu)
    m = dequantize(state.mu, state.mu_absmax)
    return np.float64(m), np.float64(dequantize(state.nu, state.nu_absmax, signed=False))


@pytest.mark.parametrize(("sigma", "bound"), [(1.0, 0.5), (2.0, 3.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_second_moment_blows_an_update_up(sigma, bound, seed):
    grads = gradients(seed, 100, sigma)
    _, exact = run(scale_by_lamb(bits=32), grads)
    _, coded = run(scale_by_lamb(bits=8), grads)
    assert np.abs(directions(coded) - directions(exact)).max() < bound


@functools.cache
def drifted(codec):
    grads = gradients(3, 3000, 0.0, elements=8192)
    exact = run(scale_by_lamb(bits=32), grads)[1]
    return exact, run(scale_by_lamb(bits=8, options=StateOptions(codec=codec)), grads)[1]


def test_stored_second_moments_do_not_drift():
    exact, coded = drifted("power")
    v, v8 = moments(exact)[1], moments(coded)[1]
    # Rounding to nearest would leave +0.2 to +0.4: a step's decay of 0.1 % never reaches the next
    # code. Rounded without bias, the mean's own standard error is below 0.002.
    assert abs(np.mean(np.log(v8 / v))) < 0.05
