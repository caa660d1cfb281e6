"""NNX models with annotations: where on a mesh the state of their optimizer is, and stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from optax_lamblion import StateOptions, lamb8bit, lion8bit, paged_lion8bit, state_sharding
from optax_lamblion.flax import Optimizer, shardings
from tests.flax import problem
from tests.flax.problem import params_of, state_of

# Of the embedding's 1024 columns each device has 128, which is less than a block of 256.
OPTIONS = StateOptions(block_size=128, page_min_size=1000)
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def assert_last_units(new, expected, old):
    """LAMB's norms are added up in another order on a mesh, which moves a trust ratio by a unit or
    two in its last place: 2**-21 of the update, which the rounding of the sum comes on top of."""
    bound = 2.0**-21 * np.abs(expected - old) + 2.0**-23 * np.abs(expected)
    assert (np.abs(new - expected) <= bound).all()


def assert_same_bits(new, expected, old):
    np.testing.assert_array_equal(new, expected)


SAME = {lion8bit: assert_same_bits, paged_lion8bit: assert_same_bits, lamb8bit: assert_last_units}


def make_mesh(kind):
    return jax.make_mesh((8,), ("x",), axis_types=(KINDS[kind],))


@pytest.mark.parametrize("make", SAME)
@pytest.mark.parametrize("kind", KINDS)
def test_state_is_where_state_sharding_says_and_stays_there(kind, make):
    tx = make(1e-2, weight_decay=0.1, options=OPTIONS)
    with jax.set_mesh(make_mesh(kind)):
        model = problem.Model(nnx.with_partitioning)
        optimizer = Optimizer(model, tx, wrt=nnx.Param)
        for_state = state_sharding(tx, params_of(model))
        problem.assert_at(state_of(optimizer), for_state)
        assert for_state.mu["embed"]["embedding"].shard_shape((16, 1024)) == (16, 128)
        hosted = for_state.mu["layers"][0]["kernel"].memory_kind == "pinned_host"
        assert hosted == (make is paged_lion8bit)

        grads = problem.gradients(model)
        old = jax.tree.map(np.array, params_of(model))
        # XLA is free to put results elsewhere on a mesh with Auto axes.
        there = (shardings(model), shardings(optimizer), None) if kind == "auto" else None
        step = nnx.jit(problem.update, in_shardings=there, donate_argnums=(0, 1))
        compiled = step.lower(model, optimizer, grads).compile()
        of_one_device = [x.addressable_shards[0].data for x in jax.tree.leaves((model, optimizer))]
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes == problem.size(of_one_device)
        compiled(model, optimizer, grads)
        problem.assert_at(state_of(optimizer), for_state)
        problem.assert_at(params_of(model), jax.tree.map(lambda x: x.sharding, grads))

    alone = problem.Model()
    nnx.update(alone, jax.tree.map(jnp.asarray, old))
    by_itself = Optimizer(alone, tx, wrt=nnx.Param)
    nnx.jit(problem.update)(alone, by_itself, problem.gradients(alone))
    problem.assert_equal(state_of(optimizer), state_of(by_itself))
    jax.tree.map(SAME[make], params_of(model), params_of(alone), old)


def test_training_on_a_mesh():
    """Gradients come from where XLA likes them, and in_shardings keep state where it was."""
    tx = lion8bit(1e-2, options=OPTIONS)
    with jax.set_mesh(make_mesh("auto")):
        model = problem.Model(nnx.with_partitioning)
        optimizer = Optimizer(model, tx, wrt=nnx.Param)
        before = jax.tree.map(lambda x: x.sharding, (model, optimizer))
        there = shardings(model), shardings(optimizer)
        step = nnx.jit(problem.train, in_shardings=there, donate_argnums=(0, 1))
        losses = [float(step(model, optimizer)) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    problem.assert_at((model, optimizer), before)


@pytest.mark.parametrize("make", [lion8bit, paged_lion8bit])
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_is_made_inside_jit(kind, make):
    """On Auto axes XLA would put all of a fresh state on every device."""

    def create():
        model = problem.Model(nnx.with_partitioning)
        return model, Optimizer(model, make(options=OPTIONS), wrt=nnx.Param)

    with jax.set_mesh(make_mesh(kind)):
        model, optimizer = nnx.jit(create)()
        problem.assert_at(state_of(optimizer), state_sharding(optimizer.tx, params_of(model)))


def test_inside_jit_bare_models_are_left_to_the_compiler():
    def create():
        model = problem.Model()
        return model, Optimizer(model, lion8bit(options=OPTIONS), wrt=nnx.Param)

    with jax.set_mesh(make_mesh("auto")):
        text = jax.jit(lambda: nnx.state(create())).lower().as_text()
    assert "sharding_constraint" not in text


def test_shardings_of_flax_are_taken():
    """`state_sharding` takes what `nnx.get_named_sharding` returns, before there is an array."""
    mesh, tx = make_mesh("auto"), lion8bit(options=OPTIONS)
    with jax.set_mesh(mesh):
        shapes = nnx.state(nnx.eval_shape(lambda: problem.Model(nnx.with_partitioning)), nnx.Param)
        model = problem.Model(nnx.with_partitioning)
    for_state = state_sharding(tx, shapes, nnx.get_named_sharding(shapes, mesh))
    expected = state_sharding(tx, params_of(model))
    assert jax.tree.leaves(for_state) == jax.tree.leaves(expected)


class TestWhyNotTheOptimizerOfFlax:
    """It puts the annotation of a parameter on all that is kept for it, as the page says."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_scales_do_not_divide_like_their_parameter(self, kind):
        with jax.set_mesh(make_mesh(kind)):
            model = problem.Model(nnx.with_partitioning)
            with pytest.raises(ValueError, match="dimension size"):
                nnx.Optimizer(model, lion8bit(), wrt=nnx.Param)

    def test_paged_state_leaves_host_memory(self):
        rows = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("x", None))
        with jax.set_mesh(make_mesh("auto")):
            layer = nnx.Linear(256, 256, kernel_init=rows, rngs=nnx.Rngs(0))
            for kind, memory in [(nnx.Optimizer, "device"), (Optimizer, "pinned_host")]:
                optimizer = kind(layer, paged_lion8bit(options=OPTIONS), wrt=nnx.Param)
                assert state_of(optimizer).mu["kernel"].sharding.memory_kind == memory
