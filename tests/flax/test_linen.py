"""Optimizers in Linen's `TrainState`, and in the one of this package."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_lamblion import StateOptions, lion8bit, paged_lamb8bit, state_sharding
from optax_lamblion.flax import TrainState
from tests.flax import problem
from tests.optimizers.test_apply_fused import assert_two_ulp
from tests.variants import VARIANTS, every


@every(lambda v: v.bits == 8)
def test_training_with_donation(v):
    state = problem.train_state(train_state.TrainState, v()).replace(step=jnp.int32(0))
    before = problem.forms(state)
    assert ("pinned_host" in {kind for *_, kind in before}) == v.paged
    step = jax.jit(problem.linen_train, donate_argnums=0).lower(state).compile()
    assert step.memory_analysis().alias_size_in_bytes == problem.size(state)
    losses = []
    for _ in range(3):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2]
    assert int(state.step) == int(state.opt_state.count) == 3
    assert problem.forms(state) == before


@every(lambda v: v.bits == 8)
def test_a_step_needs_no_updates(v):
    tx = v()
    plain, fused = (
        problem.train_state(kind, tx).replace(step=jnp.int32(0))
        for kind in (train_state.TrainState, TrainState)
    )
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads), donate_argnums=0)
    grads = problem.normal_like(plain.params)
    theirs = step.lower(plain, grads).compile()
    ours = step.lower(fused, grads).compile()

    assert ours.memory_analysis().alias_size_in_bytes == problem.size(fused)
    size = sum(p.size for p in jax.tree.leaves(grads))
    needed = [x.memory_analysis().temp_size_in_bytes / size for x in (theirs, ours)]
    assert needed == pytest.approx(problem.temporary(v), abs=0.005)  # two decimals

    old = jax.tree.map(np.array, plain.params)
    plain, fused = theirs(plain, grads), ours(fused, grads)
    jax.tree.map(assert_two_ulp, fused.params, plain.params, old)
    problem.assert_equal(fused.opt_state, plain.opt_state)
    assert int(fused.step) == int(plain.step) == 1


def test_clipping_in_front_keeps_the_clipped_gradients():
    (v,) = (v for v in VARIANTS if v.name == "lion8bit")
    state = problem.train_state(TrainState, optax.chain(optax.clip_by_global_norm(1.0), v()))
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads), donate_argnums=0)
    grads = problem.normal_like(state.params)
    memory = step.lower(state, grads).compile().memory_analysis()
    _, without = problem.temporary(v)
    needed = memory.temp_size_in_bytes / sum(p.size for p in jax.tree.leaves(grads))
    assert needed <= without + 4 + 0.01  # in float32; small leaves need not be kept


def test_values_that_gradients_overwrite_are_not_stepped():
    tx = optax.chain(optax.clip_by_global_norm(1.0), lion8bit(1e-3, weight_decay=0.1))
    plain, fused = (
        problem.train_state(kind, tx, fp8=True) for kind in (train_state.TrainState, TrainState)
    )
    assert set(fused.params) == {"params", OVERWRITE_WITH_GRADIENT}
    assert set(fused.opt_state[1].mu) == set(fused.params["params"])
    _, grads = jax.jit(problem.linen_grads)(fused)
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    new, expected = step(fused, grads), step(plain, grads)
    problem.assert_equal(new.params[OVERWRITE_WITH_GRADIENT], grads[OVERWRITE_WITH_GRADIENT])
    assert jax.tree.structure(new.params) == jax.tree.structure(expected.params)
    jax.tree.map(assert_two_ulp, new.params, expected.params, fused.params)
    problem.assert_equal(new.opt_state, expected.opt_state)


def test_other_fields_are_replaced():
    class WithStatistics(TrainState):
        statistics: Any = None

    state = problem.train_state(WithStatistics, lion8bit(1e-3))
    grads = jax.tree.map(jnp.ones_like, state.params)
    state = state.apply_gradients(grads=grads, statistics={"mean": 1.0})
    assert state.statistics == {"mean": 1.0}
    assert state.step == 1


# ------------------------------------------------------------------------------------------ meshes

# Rows of the kernel have 16 elements, and each device has 128 rows.
OPTIONS = StateOptions(block_size=32, page_min_size=1000)


def shardings(state, mesh, tx, for_params):
    """Where everything of a train state is, as on the page."""
    return state.replace(
        step=NamedSharding(mesh, P()),
        params=for_params,
        opt_state=state_sharding(tx, state.params, for_params),
    )


@pytest.mark.parametrize("make", [lion8bit, paged_lamb8bit])
def test_a_train_state_on_a_mesh(make):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx = make(3e-3, weight_decay=0.1, options=OPTIONS)

    def create():
        return problem.train_state(TrainState, tx)

    shapes = jax.eval_shape(create)
    for_params = jax.tree.map(
        lambda p: NamedSharding(mesh, P("x", None) if p.ndim > 1 else P()), shapes.params
    )
    there = shardings(shapes, mesh, tx, for_params)
    state = jax.jit(create, out_shardings=there)()
    problem.assert_at(state, there)
    step = jax.jit(
        problem.linen_train, donate_argnums=0, out_shardings=(there, NamedSharding(mesh, P()))
    )
    compiled = step.lower(state).compile()
    of_one_device = [x.addressable_shards[0].data for x in jax.tree.leaves(state)]
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == problem.size(of_one_device)
    losses = []
    for _ in range(3):
        state, loss = compiled(state)
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2]
    problem.assert_at(state, there)


class TestBoxes:
    """Parameters with logical names are in boxes, which their state has not."""

    rows = nn.with_partitioning(nn.initializers.lecun_normal(), ("x", None))
    model = nn.Dense(256, kernel_init=rows)
    x = jnp.ones((4, 256))

    def create(self):
        boxed = self.model.init(jax.random.key(0), self.x)["params"]
        return TrainState.create(apply_fn=self.model.apply, params=boxed, tx=lion8bit(1e-3))

    def test_a_step_keeps_them_and_is_that_of_bare_parameters(self):
        state = self.create()
        bare = state.replace(params=nn.unbox(state.params))
        assert state.opt_state.mu_absmax["kernel"].shape == (256, 1)
        step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
        boxed_grads = jax.tree.map(jnp.ones_like, state.params)
        new, expected = step(state, boxed_grads), step(bare, nn.unbox(boxed_grads))
        assert isinstance(new.params["kernel"], nn.Partitioned)
        problem.assert_equal(nn.unbox(new), expected)
        again = self.create().restore(new.checkpoint()).replace(tx=new.tx)  # and not one like it
        assert jax.tree.structure(again) == jax.tree.structure(new.replace(step=1))
        problem.assert_equal(again.replace(step=new.step), new)

    def test_state_sharding_takes_what_linen_knows_of_them(self):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        shapes = jax.eval_shape(self.create)
        for_params = nn.get_sharding(shapes.params, mesh)
        for_state = state_sharding(shapes.tx, nn.unbox(shapes.params), for_params)
        assert for_state.mu_absmax["kernel"].spec == P("x")
        assert jax.tree.structure(for_state) == jax.tree.structure(shapes.opt_state)


def test_extra_arguments_and_grad_scale_reach_the_step():
    state = problem.train_state(TrainState, lion8bit(1e-3))
    grads = problem.normal_like(state.params)
    doubled = jax.tree.map(lambda x: 2 * x, grads)
    new = state.apply_gradients(grads=doubled, extra_args={"grad_scale": 0.5})
    problem.assert_equal(new, state.apply_gradients(grads=grads))
    with pytest.raises(TypeError, match="`grad_scale` must be one real number"):
        state.apply_gradients(grads=grads, extra_args={"grad_scale": "2"})


def test_what_is_no_transformation_is_refused():
    with pytest.raises(TypeError, match=r"must be an Optax transformation.*function `lion8bit`"):
        problem.train_state(TrainState, lion8bit)
