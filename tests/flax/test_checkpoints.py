"""`checkpoint` and `restore` of both optimizers for Flax, within one process."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

from optax_lamblion import (
    StateOptions,
    clip_by_global_norm,
    convert_state,
    lamb8bit,
    lion8bit,
    lion32bit,
    paged_lion8bit,
)
from optax_lamblion.flax import Optimizer, TrainState
from tests.flax import problem

PAGED = StateOptions(page_min_size=1000)
TX = optax.chain(clip_by_global_norm(1.0), paged_lion8bit(1e-3, options=PAGED))


class Noisy(nnx.Module):
    """A model with what is not trained, too: statistics, random keys and counts, a number."""

    def __init__(self, size=16):
        rngs = nnx.Rngs(0)
        self.layers = problem.Model()
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, size, rngs=rngs)
        self.calls = nnx.Variable(3)

    def __call__(self, tokens):
        return self.head(self.dropout(self.norm(self.layers(tokens))))


def make(tx=TX, **kwargs):
    model = Noisy(**kwargs)
    return model, Optimizer(model, tx, wrt=nnx.Param)


def trained(**kwargs):
    """A model and its optimizer after a step, which draws a mask and moves statistics."""
    model, optimizer = make(**kwargs)
    nnx.jit(problem.train)(model, optimizer)
    return model, optimizer


def bare(*nodes):
    """All arrays of modules, with random keys as their data."""
    arrays = nnx.to_pure_dict(nnx.state(nodes))
    is_key = lambda x: jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else jnp.asarray(x), arrays)


def through_orbax(saved, target, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", saved)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", target)


def through_msgpack(saved, target, folder):
    return serialization.msgpack_restore(serialization.to_bytes(saved))


WAYS = pytest.mark.parametrize("way", [through_orbax, through_msgpack])


# --------------------------------------------------------------------------------------- the same


@WAYS
@pytest.mark.parametrize("of", [make, lambda: nnx.eval_shape(make)], ids=["arrays", "shapes"])
def test_everything_comes_back_and_training_resumes(of, way, tmp_path):
    model, optimizer = trained()
    again, fresh = of()
    saved = way(optimizer.checkpoint(model), fresh.checkpoint(again), tmp_path)
    fresh.restore(again, saved)
    problem.assert_equal(bare(again, fresh), bare(model, optimizer))
    assert problem.forms(fresh) == problem.forms(optimizer)
    assert "pinned_host" in {kind for *_, kind in problem.forms(fresh)}
    assert again.calls.get_value() == 3
    step = nnx.jit(problem.train)
    assert step(again, fresh) == step(model, optimizer)
    problem.assert_equal(bare(again, fresh), bare(model, optimizer))


@WAYS
def test_a_train_state_comes_back_with_all_of_its_fields(way, tmp_path):
    class WithKey(TrainState):
        key: jax.Array

    def create():
        made = problem.train_state(TrainState, TX)
        fields = dict(apply_fn=made.apply_fn, params=made.params, tx=TX)
        return WithKey.create(**fields, key=jax.random.key(7))

    step = jax.jit(problem.linen_train)
    state, _ = step(create())
    for fresh in (create(), jax.eval_shape(create)):
        folder = tmp_path / type(jax.tree.leaves(fresh)[0]).__name__
        again = fresh.restore(way(state.checkpoint(), fresh.checkpoint(), folder))
        assert problem.forms(again.opt_state) == problem.forms(state.opt_state)
        assert again.key == state.key and again.step == 1
        (new, loss), (expected, same) = step(again), step(state)
        assert loss == same
        problem.assert_equal(new.checkpoint(), expected.checkpoint())


def test_a_checkpoint_has_dicts_and_strings_only():
    model, optimizer = make()
    saved = optimizer.checkpoint(model)
    assert list(saved) == ["model", "opt_state", "step"]

    def check(node):
        if isinstance(node, dict):
            assert {type(key) for key in node} <= {str}
            return [check(x) for x in node.values()]
        return np.asarray(node)  # of a random key this raises

    check(saved)
    assert saved["opt_state"]["1"]["mu"]["layers"]["layers"]["0"]["kernel"].dtype == jnp.uint8


def test_only_some_variables():
    model, optimizer = trained()
    saved = optimizer.checkpoint(model, only=nnx.PathContains("head"))
    assert list(saved["model"]) == ["head"]
    again, fresh = make()
    before = bare(again.layers)
    fresh.restore(again, saved, only=nnx.PathContains("head"))
    problem.assert_equal(bare(again.head, fresh), bare(model.head, optimizer))
    problem.assert_equal(bare(again.layers), before)


@pytest.mark.parametrize("tx", [optax.sgd(0.1), optax.sgd(0.1, 0.9)], ids=["no_state", "momentum"])
@WAYS
def test_any_transformation_of_optax(way, tx, tmp_path):
    model, optimizer = trained(tx=tx)
    again, fresh = make(tx)
    fresh.restore(again, way(optimizer.checkpoint(model), fresh.checkpoint(again), tmp_path))
    problem.assert_equal(bare(again, fresh), bare(model, optimizer))


# -------------------------------------------------------------------------------------- otherwise


def test_another_layout_is_converted():
    model, optimizer = trained(tx=lion32bit(1e-3))
    coarse = lion8bit(1e-3, options=StateOptions(block_size=2048))
    again, fresh = make(coarse)
    fresh.restore(again, optimizer.checkpoint(model))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    problem.assert_equal(
        problem.state_of(fresh), convert_state(problem.state_of(optimizer), params, coarse)
    )
    assert int(fresh.step[...]) == 1


def test_what_the_optimizer_of_flax_left():
    """Its state, in Flax's own words, beside the model."""
    model = Noisy()
    theirs = nnx.Optimizer(model, TX, wrt=nnx.Param)
    nnx.jit(problem.train)(model, theirs)
    again, ours = make()
    saved = nnx.to_pure_dict(nnx.state(theirs))
    ours.restore(again, ours.checkpoint(model) | saved)
    problem.assert_equal(problem.state_of(ours), problem.state_of(theirs))
    problem.assert_equal(bare(again), bare(model))
    assert int(ours.step[...]) == 1


def test_a_new_head_begins_fresh_if_that_is_asked_for():
    model, optimizer = trained()
    saved = optimizer.checkpoint(model)
    del saved["model"]["calls"]
    saved["model"]["old"] = {"kernel": jnp.ones(3)}
    again, fresh = make(size=32)
    before, untouched = bare(again.head), bare(again, fresh)
    with pytest.raises(ValueError, match=r"'model/head/bias' has shape \(16,\) where \(32,\)"):
        fresh.restore(again, saved)
    with pytest.warns(UserWarning) as caught:
        fresh.restore(again, saved, missing="fresh")
    said = " ".join(str(x.message) for x in caught)
    assert "not restored: 'model/calls', 'model/head/bias', 'model/head/kernel'" in said
    assert "dropped from the checkpoint: 'model/old/kernel'" in said
    assert "oments of 'head/bias', 'head/kernel' " in said  # of `convert_state`
    problem.assert_equal(bare(again.head), before)
    problem.assert_equal(bare(again.layers), bare(model.layers))
    assert not problem.state_of(fresh)[1].mu["head"]["kernel"].any()
    assert jax.tree.structure(bare(again, fresh)) == jax.tree.structure(untouched)


# ---------------------------------------------------------------------------------------- refusals


def spoiled(saved, how):
    saved = jax.tree.map(np.asarray, saved)
    kernel = saved["model"]["head"]
    if how == "missing":
        del kernel["kernel"]
    elif how == "more":
        kernel["scale"] = np.ones(16)
    elif how == "dtype":
        kernel["kernel"] = kernel["kernel"].astype(jnp.bfloat16)
    elif how == "no_state":
        del saved["opt_state"]
    elif how == "state":
        del saved["opt_state"]["1"]["mu"]["head"]["kernel"]
    return saved


REFUSALS = {
    "missing": "another model: it has no 'model/head/kernel'",
    "more": "it has 'model/head/scale', for which there is no place",
    "dtype": "'model/head/kernel' was saved as bfloat16, and is float32 here",
    "no_state": r"'model', 'opt_state', 'step'; got one with 'model', 'step'.*`convert_state\(",
    "state": "'1/mu/head/kernel' is missing",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_what_is_refused_changes_nothing(how):
    model, optimizer = trained()
    again, fresh = make()
    before = bare(again, fresh)
    with pytest.raises(ValueError, match=REFUSALS[how]):
        fresh.restore(again, spoiled(optimizer.checkpoint(model), how))
    problem.assert_equal(bare(again, fresh), before)


def test_another_kind_of_optimizer_is_refused():
    model, optimizer = trained(tx=lion8bit())
    with pytest.raises(ValueError, match="nu/.* is missing"):
        Optimizer(model, lamb8bit(), wrt=nnx.Param).restore(model, optimizer.checkpoint(model))


def test_what_cannot_be_saved_is_named():
    model, optimizer = make()
    model.calls = nnx.Variable("three")
    with pytest.raises(TypeError, match="'calls' is 'three', which is no array"):
        optimizer.checkpoint(model)


@pytest.mark.parametrize("saved", [3, None, [1]])
def test_what_is_no_checkpoint_is_refused(saved):
    model, optimizer = make()
    with pytest.raises(ValueError, match=f"got `{type(saved).__name__}`"):
        optimizer.restore(model, saved)
    state = problem.train_state(TrainState, TX)
    with pytest.raises(ValueError, match=f"got `{type(saved).__name__}`"):
        state.restore(saved)
