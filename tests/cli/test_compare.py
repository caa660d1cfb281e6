import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lamblion as ol
from optax_lamblion.demo.compare import Observer, compare
from optax_lamblion.demo.optimizers import OPTIMIZERS, find_optimizers, training_chain
from optax_lamblion.demo.task import Task
from optax_lamblion.demo.ways import entries
from pallas_kernels.arithmetic.params import ROUNDINGS


@pytest.fixture
def task():
    """Linear regression; `batches` records which steps asked for data."""
    truth = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

    def batch(step):
        x = np.random.default_rng(step).normal(size=(8, 64)).astype(np.float32)
        return x, x @ truth

    def loss(params, batch):
        x, y = batch
        return jnp.mean(jnp.square(x @ params["w"] - y))

    return Task(
        name="regression",
        title="Linear regression",
        params={"w": jnp.full((64, 64), 0.1)},
        loss=loss,
        batch=batch,
        evaluate=lambda params: {"loss": float(loss(params, batch(1000)))},
        baseline_name="nothing",
        baseline={"loss": 64.0},
    )


def chains(names, steps):
    return {row.name: training_chain(row, steps=steps) for row in find_optimizers(names)}


def test_every_known_optimizer_lowers_the_loss(task):
    runs = compare(task, chains(",".join(OPTIMIZERS), 30), steps=30)
    for run in runs:
        assert run.held_out[-1]["loss"] < run.held_out[0]["loss"], run.name


def test_all_runs_start_alike_and_see_the_same_batches(task):
    optax_lion, lion = compare(task, chains("optax.lion,lion32bit", 5), steps=5)
    np.testing.assert_array_equal(optax_lion.train_losses, lion.train_losses)


def test_runs_repeat_exactly(task):
    first, again = (compare(task, chains("lamb8bit", 5), steps=5)[0] for _ in range(2))
    assert first.train_losses == again.train_losses
    assert first.held_out == again.held_out


def test_the_start_survives_donation(task):
    compare(task, chains("lion8bit", 2), steps=2)
    assert float(task.params["w"][0, 0]) == np.float32(0.1)


def test_state_bytes_are_counted_in_the_state(task):
    runs = compare(task, chains("lion8bit,lion32bit,lamb8bit", 1), steps=1)
    for run in runs:
        assert run.state_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    lion8bit, lion32bit, lamb8bit = (run.bytes_per_parameter for run in runs)
    assert lion8bit == pytest.approx(1.016, abs=5e-3)
    assert lion32bit == pytest.approx(4, abs=5e-3)
    assert lamb8bit == pytest.approx(2.031, abs=5e-3)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_held_out_data_is_measured_at_both_ends_and_once_per_step(task, steps):
    (run,) = compare(task, chains("lion8bit", steps), steps=steps, evaluations=10)
    assert run.held_out_steps == sorted(set(run.held_out_steps))
    assert (run.held_out_steps[0], run.held_out_steps[-1]) == (0, steps)
    assert len(run.held_out) == len(run.held_out_steps) == min(steps, 10) + 1
    assert len(run.step_ms) == len(run.train_losses) == steps


def test_a_stopped_comparison_is_even_and_evaluated(task):
    seen = []

    class Watch(Observer):
        def stepped(self, runs):
            seen.append(runs[0].steps)

    runs = compare(
        task,
        chains("lion8bit,lamb8bit", 100),
        steps=100,
        observer=Watch(),
        should_stop=lambda: len(seen) == 7,
    )
    assert [run.steps for run in runs] == [7, 7]
    assert [run.held_out_steps[-1] for run in runs] == [7, 7]


def test_a_comparison_stopped_while_compiling_has_no_steps(task):
    assert compare(task, chains("lion8bit", 5), steps=5, should_stop=lambda: True) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("lion9bit", "Unknown optimizer 'lion9bit'.*lion8bit"),
        ("lion8bit,lion8bit", "twice"),
        (" , ", "No optimizer"),
    ],
)
def test_wrong_optimizer_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        find_optimizers(names)


def test_relatives_get_the_same_hyperparameters():
    for row in OPTIMIZERS.values():
        baseline = OPTIMIZERS[row.baseline]
        assert row.factory.keywords == baseline.factory.keywords
        assert row.learning_rate == baseline.learning_rate
        assert row.weight_decay == baseline.weight_decay


# --- Ways to keep parameters ---------------------------------------------------------------------


def kept(task, names, steps, dtype="bfloat16", roundings=ROUNDINGS, **arguments):
    """The runs of all ways, by the names of the ways."""
    found = entries(find_optimizers(names), dtype, roundings)
    txs = {entry.name: entry.optimizer(steps=steps, **arguments) for entry in found}
    ways = {entry.name: entry.way for entry in found}
    runs = compare(task, txs, steps=steps, ways=ways)
    return {run.name.partition(", ")[2]: run for run in runs}


def test_all_ways_start_at_the_same_values(task):
    runs = kept(task, "lion8bit", 2)
    assert len(runs) == 4
    assert len({run.held_out[0]["loss"] for run in runs.values()}) == 1
    assert len({run.train_losses[0] for run in runs.values()}) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["lion8bit", "adamw", "optax.lamb"])
def test_parameters_are_stored_in_their_dtype_and_state_is_not(task, name, dtype):
    roundings = ["nearest"] if name.startswith("optax") else ROUNDINGS
    for way, run in kept(task, name, 2, dtype, roundings).items():
        assert run.params["w"].dtype == ("float32" if way == "float32" else dtype)
        assert run.parameter_bytes == run.params["w"].dtype.itemsize * 64 * 64
        assert dtype not in {leaf.dtype for leaf in jax.tree.leaves(run.state)}


def test_float32_parameters_train_as_without_a_choice(task):
    even = dataclasses.replace(task, params={"w": jnp.full((64, 64), 0.125)})  # has 16 bits
    run = kept(even, "lion8bit", 5, roundings=["nearest"])["float32"]
    (plain,) = compare(even, chains("lion8bit", 5), steps=5)
    # `apply_fused` rounds once where an update and its addition round twice: 2 ulp of a parameter
    # in every step, and the loss has a relative slope of about 2 in them.
    np.testing.assert_allclose(run.train_losses, plain.train_losses, rtol=5 * 2 * 2 * 2**-23)


def test_steps_below_half_a_gap_are_lost_to_nearest_only(task):
    # 1e-5 on parameters of 0.1, where numbers of bfloat16 are 5e-4 apart.
    runs = kept(task, "lion8bit", 30, learning_rate=1e-5, weight_decay=0.0)
    start, end = ({way: run.held_out[i]["loss"] for way, run in runs.items()} for i in (0, -1))
    learnt = {way: start[way] - end[way] for way in runs}
    assert learnt["bfloat16 nearest"] == 0 < learnt["float32"]
    # 8 bits of residual: a gap is in 256 parts, and a step of 1e-5 five of them, give or take half.
    assert learnt["bfloat16 compensated"] == pytest.approx(learnt["float32"], rel=0.1)
    assert learnt["bfloat16 stochastic"] > 0


def test_what_compensation_keeps_is_measured(task):
    run = kept(task, "lion8bit", 10, learning_rate=1e-5)["bfloat16 compensated"]
    whole = ol.full_precision(run.params, run.state)
    assert run.held_out[-1]["loss"] == task.evaluate(whole)["loss"]
    assert run.held_out[-1]["loss_16bit"] == task.evaluate(run.params)["loss"]
    assert run.held_out[-1]["loss"] != run.held_out[-1]["loss_16bit"]
