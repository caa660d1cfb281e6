"""Every optimizer's state through Orbax: every bit of it, straight to its place."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from optax_lamblion import (
    StateOptions,
    apply_fused,
    convert_state,
    lion8bit,
    paged_lamb8bit,
    restore_target,
)
from tests.checkpoints import problem
from tests.checkpoints.problem import P
from tests.variants import VARIANTS, every, small_pages

places = pytest.mark.parametrize("saved_on", ["one device", "8 devices"])


@places
@every()
def test_every_bit_comes_to_every_place(v, saved_on, tmp_path):
    tx, p = v(), problem.params(saved_on)
    state = problem.filled(tx.init(p))
    problem.save(tmp_path / "saved", {"params": p, "opt_state": state})
    saved = problem.metadata(tmp_path / "saved")["opt_state"]
    for place in problem.PLACES:
        p = problem.params(place)
        target = {
            "params": jax.tree.map(ocp.utils.to_shape_dtype_struct, p),
            "opt_state": restore_target(tx, p, saved),
        }
        restored = problem.restore(tmp_path / "saved", target)["opt_state"]
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert problem.bits(restored) == problem.bits(state)
        problem.assert_in_place(restored, problem.expected_places(tx, p))


@every()
def test_shapes_and_shardings_say_the_same_as_parameters(v):
    tx = v()
    for place in ("8 devices", "4 devices"):
        p = problem.params(place)
        saved = jax.eval_shape(tx.init, p)
        by_parameters = restore_target(tx, p, saved)
        by_name = restore_target(tx, problem.structs(p), saved, shardings=problem.shardings(place))
        assert by_parameters == by_name


@every(lambda v: "32bit" not in v.name)
def test_no_device_gets_more_than_its_shards(v, tmp_path, monkeypatch):
    tx, p = v(), problem.params("8 devices")
    problem.save(tmp_path / "saved", tx.init(problem.params("one device")))
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    put, made = jax.device_put, []

    def spy(x, *args, **kwargs):
        out = put(x, *args, **kwargs)
        made.append((out.shape, out.sharding.memory_kind))
        return out

    monkeypatch.setattr(jax, "device_put", spy)
    restored = problem.restore(tmp_path / "saved", target)
    monkeypatch.undo()
    expected = [
        (shard.data.shape, x.sharding.memory_kind)
        for x in jax.tree.leaves(restored)
        for shard in x.addressable_shards
    ]
    assert sorted(made) == sorted(expected)


# ------------------------------------------------------------------------------- training goes on


QUICK = ("lion8bit", "paged_lamb8bit")


@pytest.mark.parametrize("place", ["one device", "8 devices"])
@pytest.mark.parametrize(
    "v",
    [
        pytest.param(v, id=v.name, marks=() if v.name in QUICK else pytest.mark.long)
        for v in VARIANTS
        if "32bit" not in v.name
    ],
)
def test_the_steps_after_it_are_one_program(v, place, tmp_path):
    """And a paged state is known to be on the host, which Orbax alone makes a step forget."""
    tx, p = v(), problem.params(place)
    state = problem.filled(tx.init(p))
    problem.save(tmp_path / "saved", state)
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    state = convert_state(problem.restore(tmp_path / "saved", target), p, tx)
    traced = []

    def step(p, g, state):
        traced.append([jax.typeof(x).memory_space for x in jax.tree.leaves(state)])
        return apply_fused(tx, p, g, state)

    on_mesh = isinstance(p["rows"].sharding, NamedSharding)
    there = (problem.shardings(place), problem.expected_places(tx, p)) if on_mesh else None
    step = jax.jit(step, donate_argnums=(0, 2), out_shardings=there)
    g = problem.params(place, seed=1)
    for _ in range(2):
        p, state = step(p, g, state)
    assert len(traced) == 1
    assert (jax.memory.Space.Host in traced[0]) == v.paged
    problem.assert_in_place(state, problem.expected_places(tx, p))


def test_convert_state_reminds_types_of_the_memory_without_a_copy(tmp_path):
    """Also after a restore with the target that Orbax makes of a fresh state."""
    tx, p = paged_lamb8bit(options=small_pages()), problem.params()
    problem.save(tmp_path / "saved", tx.init(p))
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, tx.init(p))
    restored = problem.restore(tmp_path / "saved", target)
    state = convert_state(restored, p, tx)
    problem.assert_in_place(state, problem.expected_places(tx, p))
    for name in ("mu", "mu_absmax", "nu", "nu_absmax"):
        for leaf in ("rows", "odd_tail"):
            before, after = (problem.addresses(getattr(x, name)[leaf]) for x in (restored, state))
            assert before == after


# ------------------------------------------------------------------------------ around the state


def wrapped(lion):
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(lion, {"rows": True, "odd_tail": False, "small": True}),
        optax.scale_by_schedule(lambda count: 1.0),
    )


WRAPPERS = {
    "chain and masked": wrapped,
    "partition": lambda lion: optax.partition(
        {"ours": lion, "theirs": optax.adam(1e-3)},
        {"rows": "ours", "odd_tail": "ours", "small": "theirs"},
    ),
    "MultiSteps": lambda lion: optax.MultiSteps(lion, 3).gradient_transformation(),
    "apply_if_finite": lambda lion: optax.apply_if_finite(lion, 3),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_other_transformations_have_their_state_restored_too(wrap, tmp_path):
    """What they keep for a parameter goes where that goes, everything else to every device."""
    tx, p = wrap(lion8bit(1e-3)), problem.params("8 devices")
    state = problem.filled(tx.init(p))
    problem.save(tmp_path / "saved", state)
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    restored = problem.restore(tmp_path / "saved", target)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert problem.bits(restored) == problem.bits(state)
    problem.assert_in_place(restored, problem.expected_places(tx, p))


def test_hyperparameters_are_restored(tmp_path):
    tx = optax.inject_hyperparams(lion8bit)(learning_rate=1e-3)
    p = problem.params("8 devices")
    state = tx.init(p)
    state.hyperparams["learning_rate"] = jax.numpy.float32(0.25)
    problem.save(tmp_path / "saved", state)
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    restored = problem.restore(tmp_path / "saved", target)
    assert float(restored.hyperparams["learning_rate"]) == 0.25
    problem.assert_in_place(restored, problem.expected_places(tx, p))


# ------------------------------------------------------------------------------------ edge places


def test_a_paged_leaf_in_32_bits_has_nothing_but_its_moments_on_the_host(tmp_path):
    """What stands for the scales that it does not have is on the device."""
    options = StateOptions(keep_32bit=lambda path: path == "rows")
    tx = paged_lamb8bit(options=small_pages(options))
    for place in problem.PLACES:
        p = problem.params(place)
        problem.save(tmp_path / place, tx.init(p))
        target = restore_target(tx, p, problem.metadata(tmp_path / place))
        restored = problem.restore(tmp_path / place, target)
        assert restored.nu["rows"].sharding.memory_kind == "pinned_host"
        problem.assert_in_place(restored, problem.expected_places(tx, p))


def test_a_mesh_of_one_device_is_a_mesh(tmp_path):
    tx = paged_lamb8bit(options=small_pages())
    mesh = Mesh(np.array(jax.devices()[3:4]), ("one",))
    p = jax.device_put(problem.params(), NamedSharding(mesh, P()))
    problem.save(tmp_path / "saved", tx.init(p))
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    restored = problem.restore(tmp_path / "saved", target)
    problem.assert_in_place(restored, problem.expected_places(tx, p))


def test_a_mesh_with_explicit_axes(tmp_path):
    tx = paged_lamb8bit(options=small_pages())
    p = problem.params("8 devices", AxisType.Explicit)
    state = problem.filled(tx.init(p))
    problem.save(tmp_path / "saved", state)
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    restored = problem.restore(tmp_path / "saved", target)
    assert problem.bits(restored) == problem.bits(state)
    assert jax.tree.map(jax.typeof, restored) == jax.tree.map(jax.typeof, state)


def test_without_parameters_on_a_device_it_is_the_default_one(tmp_path):
    tx, shapes = lion8bit(1e-3), problem.structs(problem.params())
    problem.save(tmp_path / "saved", tx.init(problem.params()))
    target = restore_target(tx, shapes, problem.metadata(tmp_path / "saved"))
    restored = problem.restore(tmp_path / "saved", target)
    assert all(x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(restored))
