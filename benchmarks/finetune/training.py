"""One fine-tuning of the whole model and its head, with an optimizer, a learning rate and a seed.

The seed decides on the start of the head and on the order of the sentences, each of which comes
once. Everything else is the same for both optimizers of a family, and the 8-bit one has the
library's defaults.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.finetune import docstrings, model
from benchmarks.quality.training import schedule
from optax_lamblion import (
    adamw8bit,
    apply_fused,
    clip_by_global_norm,
    lamb8bit,
    lion8bit,
    state_report,
)

SEEDS = 3
LENGTH = 24
"""Tokens of a sentence; longer ones, fewer than one in fourteen, are cut."""
BATCH = 16

_LION = dict(b1=0.9, b2=0.99, weight_decay=0.1)
_LAMB = dict(b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)
_ADAMW = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)


class Family(NamedTuple):
    """Optax's optimizer and the 8-bit one, their numbers, and the learning rates to choose from."""

    title: str
    makers: dict[str, Callable]
    numbers: dict[str, float]
    rates: tuple[float, ...]


def _family(title, float32, in_8_bits, numbers, rates):
    return Family(title, {"float32": float32, "8bit": in_8_bits}, numbers, rates)


FAMILIES = {
    "lion": _family("Lion", optax.lion, lion8bit, _LION, (1e-5, 3e-5, 1e-4, 3e-4)),
    "lamb": _family("LAMB", optax.lamb, lamb8bit, _LAMB, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "adamw": _family("AdamW", optax.adamw, adamw8bit, _ADAMW, (3e-5, 1e-4, 3e-4, 1e-3)),
}


class Task(NamedTuple):
    """A model and its sentences; `data` and `held_out` are `(tokens, mask, labels)`."""

    params: dict
    heads: int
    classes: int
    data: tuple
    held_out: tuple

    @property
    def steps(self):
        """The batches that there are."""
        return self.data[2].size // BATCH


def docstring_task(pretrained):
    """Docstrings as the tokens of a pretrained model."""

    def arrays(examples):
        return (*pretrained.tokenizer(examples.sentences, LENGTH), examples.labels)

    train, held_out = docstrings.examples()
    classes = len(docstrings.LIBRARIES)
    return Task(pretrained.params, pretrained.heads, classes, arrays(train), arrays(held_out))


def start(task, seed):
    """The pretrained weights, and a new head."""
    width = task.params["embeddings.word_embeddings.weight"].shape[1]
    weight = 0.02 * jax.random.normal(jax.random.key(seed), (task.classes, width))
    head = {"head.weight": weight, "head.bias": jnp.zeros(task.classes)}
    return jax.tree.map(jnp.array, task.params | head)  # copies, for steps overwrite them


def batches(task, seed):
    """The batches of a training, in order."""
    order = np.random.default_rng(seed).permutation(task.data[2].size)
    for rows in order[: task.steps * BATCH].reshape(-1, BATCH):
        yield tuple(x[rows] for x in task.data)


def train(task, family, bits, rate, seed, steps=None):
    """Held-out loss and accuracy at the end, and the bytes of state, as JSON has it."""
    steps = steps or task.steps
    params = start(task, seed)
    init, step = _compiled(family, bits, steps, task.heads)
    state = init(params)
    size = state_report(state).nbytes
    for batch in itertools.islice(batches(task, seed), steps):
        params, state = step(params, state, batch, rate)
    return score(params, task) | {"bytes": size}


def optimizer(family, bits, rate):
    """An optimizer behind clipping."""
    found = FAMILIES[family]
    return optax.chain(clip_by_global_norm(1.0), found.makers[bits](rate, **found.numbers))


@functools.cache
def _compiled(family, bits, steps, heads):
    """The optimizer's `init`, and a compiled step for any learning rate."""
    shares = schedule(steps)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch, rate):
        grads = jax.grad(loss)(params, batch, heads)
        tx = optimizer(family, bits, lambda count: rate * shares(count))
        return apply_fused(tx, params, grads, state)

    return optimizer(family, bits, shares).init, step


def loss(params, batch, heads):
    """The mean cross-entropy of a batch."""
    tokens, mask, labels = batch
    found = logits(params, model.sentence_means(params, tokens, mask, heads))
    return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()


def logits(params, means):
    """What the head makes of the means of sentences."""
    return means @ params["head.weight"].T + params["head.bias"][None]


def score(params, task):
    """Loss and accuracy on what is held out."""
    tokens, mask, labels = task.held_out
    found = logits(params, means(params, tokens, mask, task.heads))
    losses = optax.softmax_cross_entropy_with_integer_labels(found, labels)
    return _scores(losses, np.asarray(found).argmax(1), labels)


def _scores(losses, guesses, labels):
    accuracy = np.mean(guesses == labels)
    return {"loss": round(float(losses.mean()), 5), "accuracy": round(float(accuracy), 5)}


@functools.partial(jax.jit, static_argnums=3)
def means(params, tokens, mask, heads):
    """The means of many sentences, a hundred at a time so that little memory is needed."""

    def one(row):
        return model.sentence_means(params, row[0][None], row[1][None], heads)[0]

    return jax.lax.map(one, (tokens, mask), batch_size=100)


def frozen(task):
    """The scores of a linear classifier on the model as it comes: what fine-tuning starts from."""
    from sklearn.linear_model import LogisticRegression

    x, held_out = (
        np.asarray(means(task.params, *part[:2], task.heads)) for part in (task.data, task.held_out)
    )
    labels = task.held_out[2]
    chances = LogisticRegression(max_iter=2000).fit(x, task.data[2]).predict_proba(held_out)
    losses = -np.log(chances[np.arange(labels.size), labels])
    return _scores(losses, chances.argmax(1), labels)
