"""The two tasks, small enough for many trainings: bytes of Python sources, and digits.

All seeds of a task are one array with a leading axis, so that a step of all of them is one program.
Batches are drawn inside of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from optax_lamblion.demo import text
from optax_lamblion.demo.language import text_task
from optax_lamblion.demo.transformer import TransformerConfig

SEEDS = 5


class Task(NamedTuple):
    """A model and its data.

    - `params` are the starts of all seeds, along a leading axis.
    - `loss(params, batch)` is that of one seed, and `batch(data, key, size)` draws a batch.
    - `data` is what is drawn from: arrays. `held_out` is a batch that is not among them.
    """

    name: str
    title: str
    batch_size: int
    params: Any
    data: Any
    held_out: Any
    batch: Callable
    loss: Callable

    @property
    def parameters(self):
        """The number of parameters of a model."""
        return sum(x.size // SEEDS for x in jax.tree.leaves(self.params))


def stack(starts):
    """Starts of several seeds as one."""
    return jax.tree.map(lambda *x: jnp.stack(x), *starts)


def text_bytes(batch_size=8, length=32, windows=256):
    """A byte-level transformer of two layers, 32 wide, on the sources of Python's library."""
    corpus = text.python_sources()
    config = TransformerConfig(width=32, layers=2, heads=2, seq_len=length)
    starts = [text_task(corpus, config, batch_size=1, seed=seed) for seed in range(SEEDS)]

    def batch(data, key, size):
        first = jax.random.randint(key, (size,), 0, data.size - length)
        return data[first[:, None] + jnp.arange(length + 1)].astype(jnp.int32)

    return Task(
        name="text",
        title="byte-level transformer on the sources of Python's standard library",
        batch_size=batch_size,
        params=stack([start.params for start in starts]),
        data=jnp.asarray(corpus.train),
        held_out=jnp.asarray(corpus.held_out_windows(windows, length)),
        batch=batch,
        loss=starts[0].loss,
    )


def digits(batch_size=32):
    """A convolutional network on scikit-learn's digits, of which every fifth is held out."""
    images, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
    images = np.float32(images.reshape(-1, 8, 8, 1) / 16)
    labels = labels.astype(np.int32)
    held = np.arange(labels.size) % 5 == 0

    def batch(data, key, size):
        chosen = jax.random.randint(key, (size,), 0, data[1].size)
        return data[0][chosen], data[1][chosen]

    def loss(params, batch):
        logits = digit_logits(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return Task(
        name="digits",
        title="convolutional network on scikit-learn's digits",
        batch_size=batch_size,
        params=stack([digit_params(jax.random.key(seed)) for seed in range(SEEDS)]),
        data=(jnp.asarray(images[~held]), jnp.asarray(labels[~held])),
        held_out=(jnp.asarray(images[held]), jnp.asarray(labels[held])),
        batch=batch,
        loss=loss,
    )


def digit_params(key):
    """Two convolutions of 3 x 3 with 16 and 32 channels, and two dense layers."""
    shapes = {"conv1": (9, 16), "conv2": (9 * 16, 32), "hidden": (16 * 32, 64), "head": (64, 10)}
    keys = jax.random.split(key, len(shapes))
    init = jax.nn.initializers.he_normal()
    return {
        name: {"kernel": init(key, shape), "bias": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def digit_logits(params, images):
    """The logits of ten classes for images `[batch, 8, 8, 1]`."""
    x = jax.nn.relu(_dense(params["conv1"], _patches(images)))
    batch, _, _, channels = x.shape
    x = x.reshape(batch, 4, 2, 4, 2, channels).max((2, 4))
    x = jax.nn.relu(_dense(params["conv2"], _patches(x)))
    x = jax.nn.relu(_dense(params["hidden"], x.reshape(batch, -1)))
    return _dense(params["head"], x)


def _patches(x):
    """The 3 x 3 pixels around every one, as channels.

    With them a convolution is a matrix product. For many seeds at once, XLA makes a grouped
    convolution of one, which takes much longer on a CPU.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return jnp.concatenate([padded[:, i : i + height, j : j + width] for i, j in shifts], axis=-1)


def _dense(layer, x):
    return x @ layer["kernel"] + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


TASKS = {"text": text_bytes, "digits": digits}
