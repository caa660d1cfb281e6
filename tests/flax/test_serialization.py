"""States through `flax.serialization` by hand, and on in the memory, layout and place they need."""

import contextlib

import jax
import numpy as np
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_lamblion import (
    StateOptions,
    convert_state,
    lion8bit,
    lion32bit,
    paged_lion8bit,
    restore_target,
    state_sharding,
)
from tests.flax import problem
from tests.optimizers import problem as dicts
from tests.variants import every

# --------------------------------------------------------------------------------------- the same

# Ways through which a state comes back, from the state and a fresh one.
WAYS = {
    "from_bytes": lambda state, fresh: serialization.from_bytes(
        fresh, serialization.to_bytes(state)
    ),
    "from_state_dict": lambda state, fresh: serialization.from_state_dict(
        fresh, jax.tree.map(np.asarray, serialization.to_state_dict(state))
    ),
    "msgpack_restore": lambda state, fresh: serialization.msgpack_restore(
        serialization.to_bytes(state)
    ),
}


@every()
def test_a_state_comes_back_to_its_memory_and_goes_on(v):
    tx = v()
    p, state, _ = dicts.run(tx, 1)
    back = None
    for name, way in WAYS.items():
        restored = way(state, tx.init(p))
        assert {type(x) for x in jax.tree.leaves(restored)} == {np.ndarray}, name
        back = convert_state(restored, p, tx)
        dicts.assert_equal(back, state)
        assert problem.forms(back) == problem.forms(state)
    dicts.assert_equal(dicts.run(tx, 1, start=(p, back)), dicts.run(tx, 1, start=(p, state)))


def test_a_whole_train_state():
    tx = paged_lion8bit(1e-3, options=StateOptions(page_min_size=1000))
    state = problem.train_state(TrainState, tx)
    step = jax.jit(problem.linen_train)
    state, _ = step(state)
    data, fresh = serialization.to_bytes(state), problem.train_state(TrainState, tx)
    restored = serialization.from_bytes(fresh, data)
    opt_state = convert_state(restored.opt_state, restored.params, tx)
    restored = restored.replace(opt_state=opt_state)
    assert problem.forms(restored.opt_state) == problem.forms(state.opt_state)
    problem.assert_equal(step(restored), step(state))


# --------------------------------------------------------------------------------- another layout

OTHERS = {
    "block_size": (dict(options=StateOptions(block_size=64)), "has block size 256, but .* uses 64"),
    "codec": (dict(options=StateOptions(codec="dynamic")), 'has codec "power", but .* "dynamic"'),
}


@pytest.mark.parametrize("kwargs, message", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("make", [lion8bit, paged_lion8bit])
def test_another_layout_is_refused_by_name_and_converted(make, kwargs, message):
    p, state, _ = dicts.run(lion8bit(1e-3), 1)
    restored = serialization.from_bytes(lion8bit().init(p), serialization.to_bytes(state))
    tx = make(1e-3, **kwargs)
    with pytest.raises(ValueError, match=rf"leaf mu\['odd_tail'\] {message}.*convert_state\("):
        tx.update(dicts.grads(), restored, p)
    with pytest.raises(ValueError, match="layout"):  # Flax says so
        serialization.from_bytes(tx.init(p), serialization.to_bytes(state))
    state = convert_state(restored, p, tx)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(p))
    tx.update(dicts.grads(), state, p)


def test_other_bits_are_refused_by_name_and_converted():
    """Flax restores codes into a target in 32 bits, because that has None for their scales."""
    p, state, _ = dicts.run(lion8bit(1e-3), 1)
    tx = lion32bit(1e-3)
    restored = serialization.from_bytes(tx.init(p), serialization.to_bytes(state))
    with pytest.raises(ValueError, match=r"leaf mu\['odd_tail'\] is in 8 bits, but .* keeps 32"):
        tx.update(dicts.grads(), restored, p)
    tx.update(dicts.grads(), convert_state(restored, p, tx), p)


# --------------------------------------------------------------------------------------------- NNX


def test_names_do_not_depend_on_boxes():
    """A state of variables belongs to parameters without them, and the other way round."""
    tx, model = lion8bit(), problem.Model()
    boxed = nnx.state(model, nnx.Param)
    state = nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state
    for params in (boxed, nnx.as_pure(boxed)):
        for saved in (state, nnx.as_pure(state), nnx.to_pure_dict(nnx.state(state))):
            new = convert_state(saved, params, tx)
            assert jax.tree.structure(new) == jax.tree.structure(tx.init(params))
            problem.assert_equal(new, state)


# ------------------------------------------------------------------------------------------ meshes


@pytest.mark.parametrize("in_context", [True, False])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_paged_state_comes_back_to_its_places_on_a_mesh(kind, in_context):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, kind),))
    there = {"rows": NamedSharding(mesh, P("x", None)), "small": NamedSharding(mesh, P())}
    p = jax.device_put(dicts.params(only=dicts.FEW), there)
    tx = paged_lion8bit(options=StateOptions(page_min_size=1000))
    data = serialization.to_bytes(tx.init(p))
    with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
        for_state = state_sharding(tx, p)
        restored = serialization.msgpack_restore(data)
        problem.assert_at(convert_state(restored, p, tx), for_state)
        target = restore_target(tx, p, restored)
    assert for_state.mu["rows"].memory_kind == "pinned_host"
    assert jax.tree.map(lambda x: x.sharding, target) == for_state
