import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.steps import wide
from optax_lamblion.demo import contest, timing, workloads
from optax_lamblion.demo.optimizers import OPTIMIZERS

SHAPES = {"matrix": (16, 512), "vector": (64,)}


class Slow:
    """Takes as long as it says, on a machine that slows down from turn to turn."""

    def __init__(self, name, ms, order):
        self.name, self.ms, self.order, self.drift = name, ms, order, 1.0

    def warm_up(self):
        return self.ms

    def sample(self):
        self.order.append(self.name)
        self.drift *= 1.5
        return self.ms * self.drift


def test_turns_start_with_another_contestant_each_and_times_keep_their_places():
    order = []
    contestants = [Slow(name, ms, order) for name, ms in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    times = timing.take_turns(contestants, turns=4)
    assert "".join(order) == "abcbcacababc"
    np.testing.assert_allclose([x[0] for x in times], [1.5, 3.0, 4.5])
    assert [len(x) for x in times] == [4, 4, 4]


def test_ratios_are_those_of_a_turn_whatever_the_machine_does():
    a, b = timing.take_turns([Slow("a", 1.0, []), Slow("b", 2.0, [])], turns=9)
    assert a[-1] > 20 * a[0]
    np.testing.assert_allclose(timing.ratios(b, a), [2.0, 2.0, 2.0])


@pytest.mark.parametrize(("ms", "turns"), [(0.1, 40), (1000.0, 10), (1e5, 5)])
def test_as_many_turns_as_fit(ms, turns):
    assert len(timing.take_turns([Slow("a", ms, [])], seconds=10.0)[0]) == turns


def test_a_copy_writes_every_array_in_place():
    arrays = contest.Arrays(SHAPES, "bfloat16")
    tx = contest.optimizer(OPTIMIZERS["lion8bit"])
    carry = arrays.carry(tx.init)
    before = jax.tree.map(np.array, carry)
    program = timing.compiled(timing.copying, carry, arrays.gradients)
    once = program.call(carry, arrays.gradients)
    assert all(x.is_deleted() for x in jax.tree.leaves(carry))
    assert program.temporary_bytes == 0
    changed = jax.tree.map(lambda x, y: bool((np.array(x) != y).any()), once, before)
    assert all(jax.tree.leaves(changed))
    # It changes bits, and a second copy changes them back.
    twice = program.call(once, arrays.gradients)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, twice), before)


def test_a_step_in_wide_vectors_is_the_same_step():
    arrays = contest.Arrays(SHAPES, "float32")
    theirs, ours = wide.of_family("lion", arrays)
    assert (theirs.optimizer, ours.optimizer) == ("optax.lion", "lion8bit")
    carry = arrays.carry(contest.optimizer(OPTIMIZERS["lion8bit"]).init)
    step = timing.stepping(contest.optimizer(OPTIMIZERS["lion8bit"]), contest.APPLY_FUSED)
    expected = jax.tree.map(np.array, jax.jit(step)(carry, arrays.gradients))
    found = ours.contestant.compiled.call(carry, arrays.gradients)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_bytes_of_a_copy_are_those_of_the_step():
    arrays = contest.Arrays(SHAPES, "float32")
    entries = contest.of_family("lion", arrays, bits=(8,), ways=(contest.APPLY_FUSED,))
    _, ours, copy = (entry.contestant for entry in entries)
    assert copy.state_bytes == ours.state_bytes
    assert [entry.name for entry in entries] == ["optax.lion", "lion8bit", "copy"]


@pytest.mark.parametrize("way", timing.WAYS)
def test_both_ways_are_the_same_step(way):
    arrays = contest.Arrays(SHAPES, "float32")
    tx = contest.optimizer(OPTIMIZERS["lion8bit"])
    carry = arrays.carry(tx.init)
    updates, _ = tx.update(arrays.gradients, carry[1], carry[0])
    expected = jax.tree.map(lambda p, u: np.array(p + u), carry[0], updates)
    params, _ = jax.jit(timing.stepping(tx, way))(carry, arrays.gradients)
    # XLA may contract the last multiply and add: an ulp of the update, which is below 0.01, and one
    # of the parameter.
    rounding = {"rtol": 2**-23, "atol": 0.01 * 2**-23}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **rounding), params, expected)


def test_a_program_steps_on_and_on_in_the_same_memory():
    arrays = contest.Arrays(SHAPES, "float32")
    entry = arrays.entry(OPTIMIZERS["lion32bit"], contest.APPLY_FUSED)
    assert entry.contestant.warm_up() > 0
    assert entry.contestant.sample() > 0
    assert entry.contestant.state_bytes == 4 * arrays.elements + 4  # and a count
    assert math.isfinite(entry.contestant.compiled.compile_seconds)


def test_gradients_repeat_in_no_row():
    rows = np.asarray(timing.gradients(workloads.leaf(22), jnp.float32)["leaf"])
    assert len(np.unique(rows[:, 0])) == len(rows)


def test_lists_of_shapes_are_what_their_names_say():
    lists = {name: make() for name, make in workloads.WORKLOADS.items()}
    leaves = {name: len(shapes) for name, shapes in lists.items()}
    assert leaves == {
        "leaf-16m": 1,
        "gpt2-124m": 148,
        "llama-8b-layer": 9,  # seven matrices and two norms
        "resnet50": 161,
        "lora-r8": 32 * 2 * 2,
        "lora-r16": 32 * 7 * 2,
        "tiny-1000": 1000,
    }
    for name, rank in ("lora-r8", 8), ("lora-r16", 16):
        assert all(min(shape) == rank for shape in lists[name].values())
    assert all(math.prod(shape) < 4096 for shape in lists["tiny-1000"].values())
