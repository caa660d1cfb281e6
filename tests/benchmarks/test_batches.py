"""The sweep over batch sizes and learning rates, on a problem of which the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.batches import report, sweep
from benchmarks.quality import tasks


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


def test_there_is_a_loss_for_every_rate_and_seed_and_the_rate_matters():
    losses = np.array(sweep.sweep(squares(), "optax.adamw", 8, 512))
    assert losses.shape == (len(sweep.FACTORS), sweep.SEEDS["digits"])
    means = losses.mean(axis=1)
    assert means[-1] < 0.9 * means[0]  # 64 steps with a ninth of the rate go less far


def test_the_full_batch_is_all_examples_whatever_the_seed():
    losses = np.array(sweep.sweep(squares(), "optax.adamw", 64, 256))
    np.testing.assert_array_equal(losses[:, 0], losses[:, 1])


def test_the_best_rate_is_that_of_the_least_mean_and_none_that_diverged():
    rates, losses = [0.1, 0.3, 1.0], [[3.0, 2.0], [1.0, 1.5], [0.1, None]]
    assert report.best(rates, losses) == (1.25, 0.3, False)
    assert report.best(rates, [[1.0], [2.0], [None]]) == (1.0, 0.1, True)


@pytest.mark.parametrize("name", sweep.MAKERS)
def test_an_optimizer_of_the_sweep_goes_downhill(name):
    _, make = sweep.MAKERS[name]
    p = jax.random.normal(jax.random.key(0), (32, 32))
    tx = make()
    updates, _ = tx.update(p + 1, tx.init(p), p)
    assert float(jnp.sum(updates * (p + 1))) < 0
