"""Trainings with an optimizer and a batch size: one program, of all seeds, for every learning rate.

A training sees the same number of examples whatever its batches are, so large ones leave it few
steps. The learning rate warms up over a tenth of the steps and falls by a cosine.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality import bitsandbytes
from benchmarks.quality.tasks import digits, text_bytes
from benchmarks.quality.training import schedule
from benchmarks.quality.variants import LEAST
from optax_lamblion import adamw8bit, lamb8bit, lamb32bit, lion8bit
from optax_lamblion.demo.optimizers import OPTIMIZERS

SEEDS = {"digits": 5, "text": 3}
TASKS = {"digits": digits, "text": text_bytes}
BATCHES = {"digits": (32, 256, None), "text": (32, 128, 512)}
"""Examples in a batch; None is all of them at every step, in order."""
EXAMPLES = {"digits": 32_768, "text": 8_192}

_LAMB = dict(b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)
_ADAMW = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
_LION = dict(b1=0.9, b2=0.99, weight_decay=1.0)
_COUNTED = dict(min_8bit_size=LEAST)


def _lamb_of_bitsandbytes():
    """What its `LAMB8bit` does where it runs (a CPU): Adam without a trust ratio, in its codes."""
    numbers = {name: _ADAMW[name] for name in ("b1", "b2", "eps")}
    return optax.chain(
        bitsandbytes.scale_by_adam(**numbers, **_COUNTED),
        optax.add_decayed_weights(_ADAMW["weight_decay"]),
        optax.scale(-1.0),
    )


MAKERS = {
    "optax.lamb": ("lamb", lambda: optax.lamb(1.0, **_LAMB)),
    "lamb32bit": ("lamb", lambda: lamb32bit(1.0, **_LAMB)),
    "lamb8bit": ("lamb", lambda: lamb8bit(1.0, **_LAMB, **_COUNTED)),
    "optax.adamw": ("adamw", lambda: optax.adamw(1.0, **_ADAMW)),
    "adamw8bit": ("adamw", lambda: adamw8bit(1.0, **_ADAMW, **_COUNTED)),
    "bitsandbytes LAMB8bit": ("adamw", _lamb_of_bitsandbytes),
    "lion8bit": ("lion", lambda: lion8bit(1.0, **_LION, **_COUNTED)),
}
"""The family, with whose learning rate the search starts, and the optimizer with a rate of 1: its
updates are proportional to the rate."""


def usual_rate(name):
    """The demo's learning rate for the optimizer's family."""
    family, _ = MAKERS[name]
    return OPTIMIZERS[f"optax.{family}"].learning_rate


def batch_sizes(task):
    """Batch sizes of a task; the full one is what there is."""
    full = jax.tree.leaves(task.data)[0].shape[0]
    return [size or full for size in BATCHES[task.name]]


def trainings(task, name, batch_size, examples):
    """A function from a learning rate to the held-out losses of all seeds at the end.

    It is compiled at its first call: the search may need no more than what is kept.
    """
    tx, steps = MAKERS[name][1](), examples // batch_size
    shares = schedule(steps)
    full = batch_size == jax.tree.leaves(task.data)[0].shape[0]

    def train(params, rate, seed, data):
        def step(carry, number):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), number)
            batch = data if full else task.batch(data, key, batch_size)
            grads = jax.grad(task.loss)(params, batch)
            grads, _ = clip.update(grads, clip.init(grads))
            # Optax's own LAMB multiplies an int32 by a float.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params)
            factor = rate * shares(number)
            return (jax.tree.map(lambda p, u: p + factor * u, params, updates), state), None

        clip = optax.clip_by_global_norm(1.0)
        start = params, tx.init(params)
        (params, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
        return task.loss(params, task.held_out)

    seeds = SEEDS[task.name]
    starts = jax.tree.map(lambda x: x[:seeds], task.params)
    # All rates at once would take as long for each of them, and the search needs one at a time.
    run = jax.jit(jax.vmap(train, (0, None, 0, None)))

    def losses(rate):
        found = np.asarray(run(starts, rate, jnp.arange(seeds), task.data), float)
        # A training that diverged has no loss; JSON has no infinity.
        return [round(x, 5) if np.isfinite(x) else None for x in found]

    return losses


@functools.cache
def task(name):
    """A task by name."""
    return TASKS[name]()
