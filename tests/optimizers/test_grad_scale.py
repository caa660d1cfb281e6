"""`apply_fused(..., grad_scale=...)`: gradients times a number, for loss scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions, apply_fused, clip_by_global_norm, lion8bit
from tests.kernels.interpreted import interpreted
from tests.optimizers import problem
from tests.variants import every

LOSS_SCALE = 2.0**15


def scaled_up(g):
    """Gradients of a loss that was multiplied by `LOSS_SCALE`."""
    return jax.tree.map(lambda x: x * LOSS_SCALE, g)


def step(tx, g, **kwargs):
    p = problem.committed(problem.params())
    run = jax.jit(lambda p, g, state, kwargs: apply_fused(tx, p, g, state, **kwargs))
    # Optax's own transformations mix dtypes.
    with jax.numpy_dtype_promotion("standard"):
        return run(p, g, tx.init(p), kwargs)


WRAPPED = {
    "alone": lambda tx: tx,
    "clipped": lambda tx: optax.chain(clip_by_global_norm(1.0), tx),
    "clipped by Optax": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(tx, {"rows": True, "odd_tail": False, "small": True}),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
}


@every()
def test_a_power_of_two_is_exact(v):
    g = problem.grads()
    problem.assert_equal(step(v(), scaled_up(g), grad_scale=1 / LOSS_SCALE), step(v(), g))


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_every_transformation_sees_the_product(wrap):
    tx, g = wrap(lion8bit(1e-2, weight_decay=0.1, percentile_clipping=5)), problem.grads()
    scaled, plain = step(tx, scaled_up(g), grad_scale=1 / LOSS_SCALE), step(tx, g)
    problem.assert_near(jax.tree.leaves(scaled), jax.tree.leaves(plain), rtol=1e-6)


def test_transformations_of_others_see_it():
    g = problem.grads()
    expected = step(optax.adam(1e-2), jax.tree.map(lambda x: 0.3 * x, g))
    problem.assert_near(step(optax.adam(1e-2), g, grad_scale=0.3), expected, rtol=1e-6)


def test_what_float16_rounds_to_zero_is_stepped():
    """The product is in float32; rounded to float16 it would be 0."""
    g = jax.tree.map(lambda x: jnp.full(x.shape, 2.0**-20, jnp.float16), problem.params())
    _, state = step(lion8bit(1e-2), g, grad_scale=2.0**-10)
    np.testing.assert_allclose(state.mu["small"], 0.01 * 2.0**-30, rtol=1e-6)
    _, state = step(optax.trace(0.9), g, grad_scale=2.0**-10)
    assert not np.any(state.trace["small"])


@pytest.mark.parametrize("kernels", [False, True], ids=["xla", "kernels"])
@every(lambda v: v.bits == 8 and not v.paged)
def test_gradients_that_overflow_are_left_alone_and_counted(v, kernels):
    tx = v(options=StateOptions(count_skipped=True))
    p, g = problem.params(), problem.grads()
    bad = {"rows": (3, 7), "odd_tail": (4096,), "small": (0,)}
    g = {k: x.at[bad[k]].set([np.inf, -np.inf, np.nan][i]) for i, (k, x) in enumerate(g.items())}
    if kernels:
        with interpreted():
            out, state = step(tx, g, grad_scale=0.25)
    else:
        out, state = step(tx, g, grad_scale=0.25)
    assert state.skipped == 3
    for name, at in bad.items():
        assert out[name][at] == p[name][at]
        moved = np.asarray(out[name] != p[name])
        assert moved.sum() > 0.99 * (moved.size - 1)


@pytest.mark.parametrize("scale", [0.5, np.float32(0.5), jnp.float16(0.5), jnp.array(0.5)])
def test_it_may_be_any_real_scalar(scale):
    p, g, tx = problem.params(), problem.grads(), lion8bit(1e-2)
    half = jax.tree.map(lambda x: x / 2, g)
    out = apply_fused(tx, p, g, tx.init(p), grad_scale=scale)
    problem.assert_equal(out, apply_fused(tx, p, half, tx.init(p)))
    ones = apply_fused(tx, p, g, tx.init(p), grad_scale=1)
    problem.assert_equal(ones, apply_fused(tx, p, g, tx.init(p)))


BAD_TYPES = [True, "1", 1j, lambda count: 0.5, jnp.ones(3), np.ones(1), jnp.array(True), [0.5]]


@pytest.mark.parametrize("bad", BAD_TYPES)
def test_it_is_a_number(bad):
    p, tx = problem.params(), lion8bit(1e-2)
    with pytest.raises(TypeError, match="`grad_scale` must be one real number"):
        apply_fused(tx, p, problem.grads(), tx.init(p), grad_scale=bad)


@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf, np.float32(0)])
def test_it_is_positive_and_finite(bad):
    p, tx = problem.params(), lion8bit(1e-2)
    with pytest.raises(ValueError, match="`grad_scale` must be positive and finite"):
        apply_fused(tx, p, problem.grads(), tx.init(p), grad_scale=bad)


def test_what_is_no_gradient_is_still_refused_by_name():
    p, tx = {"w": jnp.ones(3)}, lion8bit(1e-2)
    for bad in (1.0, jnp.ones(3, jnp.int32)):
        with pytest.raises(TypeError, match="Gradient 'w'"):
            apply_fused(tx, p, {"w": bad}, tx.init(p), grad_scale=0.5)


def test_gradients_that_are_not_there_stay_so():
    p = problem.params()
    tx = lion8bit(1e-2)
    g = problem.grads() | {"small": None}
    out, _ = apply_fused(tx, p, g, tx.init(p), grad_scale=0.5)
    assert out["small"] is p["small"]
