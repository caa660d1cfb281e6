"""A training for every learning rate and seed, as one program, with an optimizer and a batch size.

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

SEEDS = {"digits": 2, "text": 1}
FACTORS = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
"""Learning rates, as multiples of the demo's for the optimizer's family."""
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
"""The family, whose learning rates are tried, and the optimizer with a learning rate of 1: updates
are proportional to it."""


def rates(name):
    """The learning rates that are tried."""
    family, _ = MAKERS[name]
    return [factor * OPTIMIZERS[f"optax.{family}"].learning_rate for factor in FACTORS]


def batch_sizes(task):
    """Batch sizes of a task; the full one is what there is."""
    full = jax.tree.leaves(task.data)[0].shape[0]
    return [size or full for size in BATCHES[task.name]]


def sweep(task, name, batch_size, examples):
    """Held-out losses at the end, `[rates][seeds]`."""
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

    tried, seeds = rates(name), SEEDS[task.name]
    # One axis for both: products of matrices with two are slower on a CPU.
    each_seed, each_rate = (
        jnp.tile(jnp.arange(seeds), len(tried)),
        jnp.repeat(jnp.array(tried), seeds),
    )
    starts = jax.tree.map(lambda x: x[each_seed], task.params)
    losses = jax.jit(jax.vmap(train, (0, 0, 0, None)))(starts, each_rate, each_seed, task.data)
    losses = np.asarray(losses, float).reshape(len(tried), seeds)
    # A training that diverged has no loss; JSON has no infinity.
    return [[round(x, 5) if np.isfinite(x) else None for x in row] for row in losses]


@functools.cache
def task(name):
    """A task by name."""
    return TASKS[name]()
