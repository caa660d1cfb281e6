"""Models of 16 bits in Flax, with a residual for every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

from optax_lamblion import (
    StateOptions,
    apply_fused,
    full_precision,
    lion8bit,
    share_moved,
)
from optax_lamblion.flax import Optimizer, TrainState
from tests.flax import problem

RATE = 1e-5
TX = lion8bit(RATE, options=StateOptions(param_rounding="compensated"))


def in_bfloat16(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def trained():
    """A model of NNX and its optimizer, after three steps; and its parameters before them."""
    model = problem.Model()
    nnx.update(model, in_bfloat16(nnx.state(model, nnx.Param)))
    optimizer, before = (
        Optimizer(model, TX, wrt=nnx.Param),
        problem.copy(problem.params_of(model)),
    )
    step = nnx.jit(problem.update, donate_argnums=(0, 1))
    for seed in range(3):
        step(model, optimizer, problem.gradients(model, seed=seed))
    return model, optimizer, before


def test_a_model_of_nnx_in_full():
    """Of its parameters, and of the state, with variables or without."""
    model, optimizer, p = trained()
    state = TX.init(p)
    for seed in range(3):
        p, state = apply_fused(TX, p, problem.normal_like(p, seed), state)
    expected = full_precision(p, state)
    problem.assert_equal(problem.params_of(model), p)
    for params in (nnx.state(model, nnx.Param), problem.params_of(model)):
        for of in (optimizer.opt_state, problem.state_of(optimizer)):
            found = full_precision(params, of)
            assert jax.tree.structure(found) == jax.tree.structure(params)
            problem.assert_equal(found, expected)
        names = {"embed/embedding", "layers/0/kernel", "layers/0/bias"}
        assert set(share_moved(params, RATE)) == names
    # Most steps are in the residual alone.
    kernel = expected["layers"][0]["kernel"]
    assert np.mean(np.float32(p["layers"][0]["kernel"]) != kernel) > 0.9


def test_it_goes_on_from_a_file():
    model, optimizer, _ = trained()
    data = serialization.to_bytes(optimizer.checkpoint(model))
    again, fresh, _ = trained()
    fresh.update(again, problem.gradients(again))  # so that there is something to restore
    fresh.restore(again, serialization.msgpack_restore(data))
    problem.assert_equal((again, fresh), (model, optimizer))


def test_the_optimizer_of_nnx_is_refused_by_name():
    model, _, _ = trained()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"'embed/embedding', bfloat16\).*`apply_fused\("):
        optimizer.update(model, problem.gradients(model))


def test_a_train_state_of_linen():
    state = problem.train_state(TrainState, TX)
    params = in_bfloat16(state.params)
    state = state.replace(params=params, opt_state=TX.init(params))
    step = jax.jit(problem.linen_train)
    for _ in range(2):
        state, _ = step(state)
    out = full_precision(state.params, state.opt_state)
    moved = jax.tree.map(lambda x, p: float(jnp.mean(x != p.astype(jnp.float32))), out, params)
    assert max(jax.tree.leaves(moved)) > 0.5
    fresh = state.replace(params=params, opt_state=TX.init(params))
    data = serialization.to_bytes(state.checkpoint())
    restored = fresh.restore(serialization.msgpack_restore(data))
    problem.assert_equal(step(restored), step(state))
