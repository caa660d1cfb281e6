"""The digits task: a small convolutional network on scikit-learn's 8x8 handwritten digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from optax_lamblion.demo.task import Task

CLASSES = 10


class DigitClassifier(nnx.Module):
    """Two convolutions and two dense layers: images `[batch, 8, 8, 1]` to logits `[batch, 10]`."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
        self.head = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of the ten classes."""
        x = nnx.relu(self.conv1(images))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.head(x)


def digits_task(*, batch_size: int = 64, seed: int = 0) -> Task:
    """1797 digits that ship with scikit-learn (no download); every fifth is held out."""
    images, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    labels = labels.astype(np.int32)
    held = np.arange(labels.size) % 5 == 0
    train_images, train_labels = images[~held], labels[~held]
    held_images, held_labels = images[held], labels[held]
    if not 1 <= batch_size <= train_labels.size:
        raise ValueError(
            f"`batch_size` is {batch_size}; it must lie between 1 and the {train_labels.size} "
            "digits there are to train on."
        )
    graphdef, params = nnx.split(DigitClassifier(rngs=nnx.Rngs(seed)), nnx.Param)

    def losses(params, images, labels):
        logits = nnx.merge(graphdef, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), logits

    def loss(params, batch):
        return losses(params, *batch)[0].mean()

    @jax.jit
    def measure(params):
        values, logits = losses(params, held_images, held_labels)
        return values.mean(), jnp.mean(logits.argmax(-1) == held_labels)

    def evaluate(params):
        held_out_loss, accuracy = measure(params)
        return {"loss": float(held_out_loss), "accuracy": float(accuracy)}

    def batch(step):
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(train_labels.size, size=batch_size, replace=False)
        return train_images[chosen], train_labels[chosen]

    return Task(
        name="digits",
        title="Convolutional network on scikit-learn's digits",
        params=params,
        loss=loss,
        batch=batch,
        evaluate=evaluate,
        baseline_name="class frequencies",
        baseline=_class_frequencies(train_labels, held_labels),
    )


def _class_frequencies(train_labels: np.ndarray, held_labels: np.ndarray) -> dict[str, float]:
    counts = np.bincount(train_labels, minlength=CLASSES)
    loss = -np.log(counts / counts.sum())[held_labels].mean()
    return {"loss": float(loss), "accuracy": float(np.mean(held_labels == counts.argmax()))}
