"""The small language model of `./dev train`, with any of our optimizers and any learning rate.

The model, the data and the schedule are those of the demo, with fewer steps and one seed. Weight
decay is off, so that the learning rate is the only thing that changes. All optimizers see the same
batches from the same start.
"""

import jax
import jax.numpy as jnp
import optax

import optax_lamblion as ol
from optax_lamblion.demo.language import text_task
from optax_lamblion.demo.text import python_sources
from optax_lamblion.demo.transformer import TransformerConfig

STEPS = 150
RATES = {
    "adamw": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "lion": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    "lamb": (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2),
}


def language_model():
    """The task of all trainings."""
    return text_task(python_sources(), TransformerConfig(), batch_size=16, seed=0)


def make(family, bits):
    """The optimizer with a learning rate of 1, which `Training` multiplies by what it is given."""
    # Optax's `eps`, as in the trainings of `./dev train`.
    numbers = {"eps": 1e-6} if family == "lamb" else {}
    factory = getattr(ol, f"{family}{bits}bit")
    return optax.chain(ol.clip_by_global_norm(1.0), factory(1.0, weight_decay=0.0, **numbers))


class Training:
    """One optimizer on a task: compiled once, for all learning rates."""

    def __init__(self, task, tx, steps):
        self.task, self.tx, self.steps = task, tx, steps
        shape = optax.warmup_cosine_decay_schedule(0.1, 1.0, max(1, steps // 10), steps, 0.05)

        @jax.jit
        def step(params, state, rate, count, batch):
            grads = jax.grad(task.loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            scale = rate * shape(count)
            updates = jax.tree.map(lambda u: scale * u, updates)
            return optax.apply_updates(params, updates), state

        self.step = step

    def loss(self, rate):
        """The held-out loss at the end."""
        params, state = self.task.params, self.tx.init(self.task.params)
        for count in range(self.steps):
            batch = self.task.batch(count)
            params, state = self.step(params, state, jnp.float32(rate), jnp.int32(count), batch)
        return float(self.task.evaluate(params)["loss"])
