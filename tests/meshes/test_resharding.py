"""A run goes on, on another mesh, from a checkpoint."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding

from optax_lamblion import apply_fused, lion8bit, state_sharding
from tests.meshes import problem
from tests.meshes.problem import P
from tests.meshes.test_same_steps import assert_close
from tests.variants import VARIANTS

MESHES = (None, "1x8", "four", None)


def make_mesh(name):
    if name == "four":
        devices = np.array(jax.devices("cpu")[:4]).reshape(2, 2)
        return jax.sharding.Mesh(devices, ("fsdp", "tp"))
    return None if name is None else problem.make_mesh(name)


def where(tx, mesh):
    """Shardings of parameters and state: on a mesh, or on the first device."""
    p = problem.params()
    if mesh is None:
        alone = NamedSharding(jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("one",)), P())
        of_state = state_sharding(tx, p, alone)
        kind = SingleDeviceSharding(jax.devices("cpu")[0])
        return jax.tree.map(
            lambda x: kind.with_memory_kind(x.memory_kind), ({k: alone for k in p}, of_state)
        )
    return problem.shardings(mesh), state_sharding(tx, p, problem.shardings(mesh))


def steps(tx, start, grads, there):
    step = jax.jit(
        lambda p, g, state: apply_fused(tx, p, g, state), donate_argnums=(0, 2), out_shardings=there
    )
    p, state = start
    for g in grads:
        p, state = step(p, jax.device_put(g, there[0]), state)
    return p, state


QUICK = ("lion8bit",)
ROWS = [
    pytest.param(v, id=v.name, marks=() if v.name in QUICK else pytest.mark.long)
    for v in VARIANTS
    if "32bit" not in v.name
]


@pytest.mark.parametrize("v", ROWS)
def test_one_eight_four_and_one(v, tmp_path):
    """A part of the run on each of them, through Orbax, ends as the run on one device does."""
    tx = v()
    grads = problem.gradients(len(MESHES))
    p = problem.params()
    undisturbed = steps(tx, (p, tx.init(p)), grads, where(tx, None))
    saved = problem.params(), tx.init(problem.params())
    for i, (name, g) in enumerate(zip(MESHES, grads, strict=True)):
        there = where(tx, make_mesh(name))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / str(i), saved)
            checkpointer.wait_until_finished()
            like = jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                saved,
                there,
            )
            restored = checkpointer.restore(tmp_path / str(i), like)
        assert problem.differing(saved, restored) == []
        saved = steps(tx, restored, [g], there)
        assert saved[1].mu["matrix"].sharding.is_equivalent_to(there[1].mu["matrix"], 2)
    assert problem.differing(undisturbed[1], saved[1]) == []
    if not v.has_ratio:
        assert problem.differing(undisturbed[0], saved[0]) == []
    else:
        assert_close(saved[0], undisturbed[0], problem.params(), len(MESHES))


@pytest.mark.parametrize("kind", problem.KINDS)
def test_a_state_of_one_device_comes_to_a_mesh(kind):
    """Without `state_sharding`: it goes where the first step puts it."""
    tx = lion8bit(1e-3, weight_decay=0.1)
    mesh = problem.make_mesh("4x2", kind)
    p, (g,) = problem.params(), problem.gradients(1)
    alone = apply_fused(tx, p, g, tx.init(p))
    everywhere = NamedSharding(mesh, P())
    state = jax.device_put(tx.init(p), everywhere)
    out = jax.jit(lambda p, g, s: apply_fused(tx, p, g, s))(
        problem.put(p, mesh), problem.put(g, mesh), state
    )
    assert problem.differing(alone, out) == []
