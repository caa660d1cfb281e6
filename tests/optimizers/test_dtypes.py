"""Parameters and gradients of any floating dtype, mixed as users mix them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optimizers import problem
from tests.variants import every

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def name(dtype):
    return jnp.dtype(dtype).name


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("param_dtype", DTYPES, ids=name)
@every()
def test_updates_have_the_dtype_that_parameters_and_gradients_promote_to(
    v, param_dtype, grad_dtype
):
    tx = v()
    p, g = problem.params(param_dtype), problem.grads(dtype=grad_dtype)
    state = jax.eval_shape(tx.init, p)
    updates, new = jax.eval_shape(tx.update, g, state, p)
    with jax.numpy_dtype_promotion("standard"):
        expected = jnp.promote_types(param_dtype, grad_dtype)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {expected}
    problem.assert_same_kinds(new, state)
    assert state.mu["small"].dtype == np.float32


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@every(lambda v: not v.has_ratio)
def test_without_params_an_update_has_the_dtype_of_the_gradients(v, weight_decay):
    """Parameters that weight decay does not need still set the dtype if they are given."""
    tx = v(weight_decay=weight_decay)
    p, g = problem.params(jnp.float32), problem.grads(dtype=jnp.bfloat16)
    state = jax.eval_shape(tx.init, p)
    updates, _ = jax.eval_shape(tx.update, g, state, p)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {np.dtype(np.float32)}
    if not weight_decay:
        updates, _ = jax.eval_shape(tx.update, g, state)
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@every()
def test_leaves_of_one_tree_have_their_own_dtypes(v):
    tx = v()
    p = {
        "rows": problem.params(jnp.bfloat16)["rows"],
        "small": problem.params(jnp.float32)["small"],
    }
    updates, _ = jax.eval_shape(tx.update, p, jax.eval_shape(tx.init, p), p)
    problem.assert_same_kinds(updates, p)


@every()
def test_half_precision_is_computed_in_float32(v):
    """The step of bfloat16 gradients and float16 parameters is that of the same numbers."""
    tx, update = problem.compiled(v)
    p, g = problem.params(jnp.float16), problem.grads(dtype=jnp.bfloat16)
    widen = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float32))
    expected = update(widen(g), tx.init(widen(p)), widen(p))
    problem.assert_near(problem.jit_update(tx)(g, tx.init(p), p), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64], ids=name)
@every()
def test_update_and_identity_have_the_same_type(v, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        tx = v()
        p, g = problem.params(dtype), problem.grads(dtype=dtype)
        state = jax.eval_shape(tx.init, p)

        def step(take, g, state, p):
            return jax.lax.cond(take, lambda: tx.update(g, state, p), lambda: (g, state))

        updates, new = jax.eval_shape(step, jnp.asarray(True), g, state, p)
        problem.assert_same_kinds(updates, p)
        problem.assert_same_kinds(new, state)


@every()
def test_float64_leaves_are_computed_in_float64(v):
    with jax.enable_x64(True):
        tx = v()
        p, g = problem.params(jnp.float64), problem.grads(dtype=jnp.float64)
        updates, state = problem.jit_update(tx)(g, tx.init(p), p)
        # In the first step a momentum is its gradient times a constant.
        rest = 1 - (0.9 if "nu" in v.slots else 0.99)
        np.testing.assert_allclose(state.mu["small"], rest * np.asarray(g["small"]), rtol=1e-15)
        assert updates["rows"].dtype == np.float64
        if v.takes_signs:
            direction = np.sign(g["rows"]) + v.kwargs["weight_decay"] * np.asarray(p["rows"])
            expected = -v.kwargs["learning_rate"] * direction
            np.testing.assert_allclose(updates["rows"], expected, rtol=1e-14)


def constant(number, dtype):
    """A schedule that returns an array of its own dtype."""
    return lambda count: jnp.asarray(number, dtype)


@every()
def test_float32_leaves_stay_float32_when_float64_is_on(v):
    _, state, updates = problem.run(v(), 1, problem.compiled(v)[1])
    with jax.enable_x64(True):
        numbers = dict(learning_rate=1e-3, b1=0.9, b2=0.99, weight_decay=0.1)
        tx = v(**{k: constant(x, jnp.float32) for k, x in numbers.items()})
        p = problem.params()
        found = jax.eval_shape(tx.update, problem.grads(), jax.eval_shape(tx.init, p), p)
    problem.assert_same_kinds(found, (updates, state))


@pytest.mark.parametrize("leaf", [jnp.float32, jnp.bfloat16], ids=name)
@pytest.mark.parametrize("scalar", [jnp.float32, jnp.bfloat16], ids=name)
@every()
def test_schedules_are_computed_with_in_float32_whatever_they_return(v, scalar, leaf):
    """The numbers of a bfloat16 model may be float32, and the reverse."""
    numbers = dict(learning_rate=2**-10, b1=0.875, b2=1 - 2**-7, weight_decay=0.125)
    p, g = (f(dtype=leaf, only=problem.FEW) for f in (problem.params, problem.grads))
    expected_tx = v(**numbers)
    expected = expected_tx.update(g, expected_tx.init(p), p)
    mask = dict.fromkeys(problem.FEW, jnp.asarray(True))  # arrays, multiplied with the decay
    tx = v(mask=mask, **{k: constant(x, scalar) for k, x in numbers.items()})
    found = tx.update(g, tx.init(p), p)
    # A relative error of 2**-8, the precision of bfloat16, would show.
    problem.assert_near(found, expected, rtol=1e-5 if leaf == jnp.float32 else 2**-7)
