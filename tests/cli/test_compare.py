import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion.demo.compare import Observer, compare
from optax_lamblion.demo.optimizers import OPTIMIZERS, find_optimizers, training_chain
from optax_lamblion.demo.task import Task


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
