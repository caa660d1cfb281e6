"""One training of all seeds with one way to store moments, and what a float32 step would have done.

Beside every 8-bit optimizer runs the same one in float32 that sees the same gradients and whose
steps nobody takes: what differs between the two steps is due to the storage alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality.tasks import SEEDS
from benchmarks.quality.variants import FLOAT32

QUANTILES = (0.5, 0.99, 1.0)
"""The median, the 99th percentile and the worst of the elements of an update."""


def schedule(steps):
    """Learning rates as shares of the largest: a tenth of the steps warm up, a cosine follows."""
    warmup = max(1, steps // 10)
    return optax.warmup_cosine_decay_schedule(0.1, 1.0, warmup, max(steps, warmup + 1), 0.05)


def train(task, rule, way, *, steps=2000, evaluations=10):
    """Trains all seeds of a task: what is to be known of it, as JSON has it."""
    part = steps // evaluations
    evaluate = held_out_loss(task)
    carry = start(task, rule, way)
    losses, differences, quantiles = [np.asarray(evaluate(carry[0]))], [], []
    run = advance(task, rule, way, steps)
    for i in range(evaluations):
        carry, difference = run(carry, task.data, i * part + jnp.arange(part))
        losses.append(np.asarray(evaluate(carry[0])))
        if way.codec:
            differences.append(np.asarray(difference).mean(axis=(0, 1)))
            quantiles.append(np.asarray(error_quantiles(*carry[3])).mean(axis=0))
    found = {"steps": [i * part for i in range(evaluations + 1)], "loss": _rounded(losses)}
    if way.codec:
        if rule.name == "lion":
            found["differs"], found["opposite"] = _rounded(np.transpose(differences))
        else:
            found["differs"], found["error"] = _rounded(differences), _rounded(quantiles)
    return found


def start(task, rule, way):
    """Parameters, states, and the last directions with either."""
    params = task.params
    if way.moved:
        noise = optax.tree.random_like(jax.random.key(1), params)
        params = jax.tree.map(lambda p, n: p * (1 + way.moved * n), params, noise)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = jax.vmap(way.direction(rule).init)(params)
    judge = jax.vmap(FLOAT32.direction(rule).init)(params) if way.codec else None
    return params, state, judge, (zeros, zeros) if way.codec else None


def advance(task, rule, way, steps):
    """A compiled `(carry, data, step numbers) -> carry, how far the two steps were apart`."""
    tx, judge_tx = way.direction(rule), FLOAT32.direction(rule)
    clip, rates = optax.clip_by_global_norm(1.0), schedule(steps)

    def step_of_seed(params, state, judge, last, seed, number, data):
        key = jax.random.fold_in(jax.random.key(seed), number)
        grads = jax.grad(task.loss)(params, task.batch(data, key, task.batch_size))
        grads, _ = clip.update(grads, clip.init(grads))
        direction, state = tx.update(grads, state, params)
        difference = jnp.zeros(())
        if way.codec:
            exact, judge = judge_tx.update(grads, judge, params)
            last, difference = (direction, exact), apart(rule, direction, exact)
        rate = rule.learning_rate * rates(number)
        params = jax.tree.map(
            lambda p, u: p - rate * (u + rule.weight_decay * p), params, direction
        )
        return (params, state, judge, last), difference

    @jax.jit
    def run(carry, data, numbers):
        def step(carry, number):
            mapped = jax.vmap(step_of_seed, in_axes=(0, 0, 0, 0, 0, None, None))
            return mapped(*carry, jnp.arange(SEEDS), number, data)

        return jax.lax.scan(step, carry, numbers)

    return run


def apart(rule, direction, exact):
    """How far two directions are apart.

    Of Lion the share of signs that differ, and of those that are opposite: others are zero on one
    side. Of other rules the norm of what differs over that of the exact one.
    """
    pairs = list(zip(jax.tree.leaves(direction), jax.tree.leaves(exact), strict=True))
    if rule.name == "lion":
        counts = sum(jnp.stack([jnp.sum(u != v), jnp.sum(u * v < 0)]) for u, v in pairs)
        return counts / sum(v.size for _, v in pairs)
    off, size = (
        sum(jnp.sum(jnp.square(x)) for x in some)
        for some in ([u - v for u, v in pairs], [v for _, v in pairs])
    )
    return jnp.sqrt(off / size)


@jax.jit
@jax.vmap
def error_quantiles(direction, exact):
    """`QUANTILES` of the errors of all elements, in units of the root mean square of their leaf.

    The error of an element over its own size has no worst: directions pass through zero.
    """
    pairs = zip(jax.tree.leaves(direction), jax.tree.leaves(exact), strict=True)
    errors = [jnp.abs(u - v) / jnp.sqrt(jnp.mean(jnp.square(v))) for u, v in pairs]
    return jnp.quantile(jnp.concatenate([x.ravel() for x in errors]), jnp.array(QUANTILES))


@functools.cache
def _mapped_loss(loss):
    return jax.jit(jax.vmap(loss, in_axes=(0, None)))


def held_out_loss(task):
    """A function from parameters to the held-out losses of all seeds, compiled once for a task."""
    return lambda params: _mapped_loss(task.loss)(params, task.held_out)


def _rounded(values):
    return np.round(np.asarray(values, float), 6).tolist()
