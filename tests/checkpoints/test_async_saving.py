"""A state that is saved while training goes on is that of the moment at which `save` was called.

The steps write over the buffers that were given to Orbax. So that they do it before a single byte
is written and not by chance after, the folder of a checkpoint is made when the test says so, and
Orbax waits for it.
"""

import asyncio
import contextlib
import threading

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from optax_lamblion import apply_fused, restore_target, state_sharding
from tests.checkpoints import problem
from tests.variants import VARIANTS

QUICK = ("lion8bit", "paged_lion8bit", "paged_lamb8bit")
ROWS = [
    pytest.param(v, id=v.name, marks=() if v.name in QUICK else pytest.mark.long) for v in VARIANTS
]


class Held(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A folder that is made when the test says so."""

    go = threading.Event()

    async def create(self):
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return await super().create()


@contextlib.contextmanager
def held():
    """Nothing is written within."""
    Held.go.clear()
    try:
        yield
    finally:
        Held.go.set()  # also after a failure, or closing would wait forever


class Training:
    """A run with donated parameters and state."""

    def __init__(self, v, place):
        self.tx, self.p, self.g = v(), problem.params(place), problem.params(place, seed=1)
        self.state = problem.filled(self.tx.init(self.p))
        there = None
        if place != "one device":
            there = (problem.shardings(place), state_sharding(self.tx, self.p))
        self._step = jax.jit(
            lambda p, g, state: apply_fused(self.tx, p, g, state),
            donate_argnums=(0, 2),
            out_shardings=there,
        )
        # What comes of a step is JAX's own memory, and not lent by NumPy: it is written over.
        self.step()

    def step(self):
        self.p, self.state = self._step(self.p, self.g, self.state)
        jax.block_until_ready(self.state)

    @property
    def tree(self):
        return {"params": self.p, "opt_state": self.state}

    def copied(self):
        """The same in other memory, made by JAX: a look through NumPy would pin the buffers."""
        kinds = jax.tree.map(lambda x: x.sharding, self.tree)
        return jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=kinds)(self.tree)

    def target(self, manager):
        return {
            "params": jax.tree.map(ocp.utils.to_shape_dtype_struct, self.p),
            "opt_state": restore_target(self.tx, self.p, manager.item_metadata(1)["opt_state"]),
        }


def written_over(training):
    """Whether a step writes the large arrays of the state over what they were."""
    before = problem.addresses(training.state.mu)
    training.step()
    after = problem.addresses(training.state.mu)
    return all(before[name] == after[name] for name in ("rows", "odd_tail"))


@pytest.mark.parametrize("place", ["one device", pytest.param("8 devices", marks=pytest.mark.long)])
@pytest.mark.parametrize("v", ROWS)
def test_a_manager_saves_the_moment(v, place, tmp_path):
    training = Training(v, place)
    assert written_over(training)
    expected, given = training.copied(), training.tree
    options = ocp.CheckpointManagerOptions(temporary_path_class=Held)
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        with held():
            manager.save(1, args=ocp.args.StandardSave(given))
            for _ in range(3):
                training.step()
            assert manager.is_saving_in_progress() and not list((tmp_path / "run").rglob("*"))
        manager.wait_until_finished()
        target = training.target(manager)
        restored = manager.restore(1, args=ocp.args.StandardRestore(target))
    assert problem.bits(restored) == problem.bits(expected)
    assert problem.bits(restored) != problem.bits(training.tree)
    problem.assert_in_place(restored["opt_state"], problem.expected_places(training.tx, training.p))


def test_a_checkpointer_saves_the_moment(tmp_path):
    (v,) = (v for v in VARIANTS if v.name == "paged_lamb8bit")
    training = Training(v, "one device")
    expected, given = training.copied(), training.tree
    with ocp.StandardCheckpointer(temporary_path_class=Held) as checkpointer:
        with held():
            checkpointer.save(tmp_path / "saved", given)
            training.step()
            assert not list(tmp_path.rglob("*"))
        checkpointer.wait_until_finished()
    assert problem.bits(problem.restore(tmp_path / "saved")["opt_state"]["mu"]) == problem.bits(
        expected["opt_state"].mu
    )
