"""The trainings with a batch size, and the search for the best learning rate of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import records
from benchmarks.batches import __main__ as command
from benchmarks.batches import report, search, sweep
from benchmarks.quality import tasks
from benchmarks.quality.kept import Kept


@pytest.fixture(autouse=True)
def as_users_have_it():
    """JAX as it comes: Optax's schedules mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def squares():
    """Least squares with one matrix."""
    target = jax.random.normal(jax.random.key(9), (32, 32))
    x = jax.random.normal(jax.random.key(8), (64, 32))

    def batch(data, key, size):
        chosen = jax.random.randint(key, (size,), 0, len(x))
        return data[0][chosen], data[1][chosen]

    def loss(params, batch):
        return jnp.mean((batch[0] @ params - batch[1]) ** 2)

    starts = jnp.zeros((tasks.SEEDS, 32, 32))
    return tasks.Task("digits", "squares", 8, starts, (x, x @ target), (x, x @ target), batch, loss)


def trained(batch_size, examples, *rates):
    """The losses of AdamW on least squares."""
    losses = sweep.trainings(squares(), "optax.adamw", batch_size, examples)
    return np.array([losses(rate) for rate in rates])


def test_there_is_a_loss_for_every_seed_and_the_rate_matters():
    losses = trained(8, 512, 0.0004, 0.04)
    assert losses.shape == (2, sweep.SEEDS["digits"])
    assert losses[1].mean() < 0.9 * losses[0].mean()  # 64 steps with a small rate go less far


def test_the_full_batch_is_all_examples_whatever_the_seed():
    losses = trained(64, 256, 0.004)
    np.testing.assert_array_equal(losses, np.broadcast_to(losses[:, :1], losses.shape))


def searched(loss, usual=1.0):
    """What is found where the loss of both seeds is a function of the power of 3."""

    def measure(rate):
        power = np.log(rate / usual) / np.log(3)
        return [loss(round(2 * power) / 2)] * 2

    return search.search(usual, measure)


def test_rates_are_tried_until_there_is_a_worse_one_on_either_side():
    cell = searched(lambda power: (power + 0.1) ** 2)
    assert cell["rates"] == [0.333333, 0.57735, 1, 1.73205, 3]
    cell = searched(lambda power: (power - 2) ** 2, usual=0.01)
    assert cell["rates"] == [0.00333333, 0.01, 0.03, 0.0519615, 0.09, 0.155885, 0.27]
    assert cell["losses"] == [[x, x] for x in (9, 4, 1, 0.25, 0, 0.25, 1)]
    assert report.best(cell) == (0.09, [0, 0], False)


def test_a_rate_halfway_to_a_neighbour_may_be_the_best():
    cell = searched(lambda power: (power - 0.4) ** 2)
    assert report.best(cell).rate == 1.73205


@pytest.mark.parametrize(("sign", "best"), [(1, 1 / 81), (-1, 81)])
def test_the_search_ends_at_the_furthest_rate_and_says_so(sign, best):
    cell = searched(lambda power: sign * power)
    assert len(cell["rates"]) == search.FURTHEST + 3
    assert report.best(cell) == (pytest.approx(best, rel=1e-5), [-4, -4], True)


def test_a_rate_with_which_a_training_diverged_is_not_the_best():
    cell = {"rates": [0.1, 0.3, 1.0], "losses": [[3.0, 2.0], [1.0, 1.5], [0.1, None]]}
    assert report.best(cell) == (0.3, [1.0, 1.5], False)
    assert searched(lambda power: None if power > -2 else power)["rates"][0] == 0.0123457  # 3**-4


def test_what_is_kept_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "task", lambda name: squares())
    monkeypatch.setattr(sweep, "batch_sizes", lambda task: [8, 64])
    monkeypatch.setattr(sweep, "MAKERS", {"optax.adamw": sweep.MAKERS["optax.adamw"]})
    first = command.measure("digits", 512, Kept(tmp_path))
    monkeypatch.setattr(sweep, "trainings", lambda *x: None)  # which cannot be called
    assert command.measure("digits", 512, Kept(tmp_path)) == first
    assert len(first["cells"]["optax.adamw"]) == len(first["sizes"])


def test_losses_are_compared_seed_by_seed_at_the_best_rate_of_each(monkeypatch):
    def cells(*losses):
        return [{"rates": [0.1, 0.2, 0.3], "losses": [[9.0, 9.0], x, [9.0, 9.0]]} for x in losses]

    task = {
        "examples": 64,
        "sizes": [8, 16, 64],
        "cells": dict.fromkeys(sweep.MAKERS, cells([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]))
        | {"optax.lamb": cells([0.5, 1.5], [1.5, 2.5], [2.0, 1.0])},
    }
    record = dict.fromkeys(records.SOURCE, "") | {"versions": {}, "results": task}
    monkeypatch.setattr(records, "load", lambda name: record)
    rows = report.differences("digits").splitlines()
    (row,) = (x for x in rows if x.startswith("| `optax.lamb` minus `optax.adamw`"))
    # A difference that is the same for all seeds is certain, one that changes its sign is not.
    assert "| **-0.5000 ± 0.0000** | **+0.5000 ± 0.0000** | +0.0000 ± 12.7062 |" in row
    assert report.FIGURES["batches.digits.lamb-adamw.middle"]() == "+0.5000 ± 0.0000"
    assert "| `optax.lamb` | **1.000** (0.2) |" in report.losses("digits")


@pytest.mark.parametrize("name", sweep.MAKERS)
def test_an_optimizer_of_the_sweep_goes_downhill(name):
    _, make = sweep.MAKERS[name]
    p = jax.random.normal(jax.random.key(0), (32, 32))
    tx = make()
    updates, _ = tx.update(p + 1, tx.init(p), p)
    assert float(jnp.sum(updates * (p + 1))) < 0
