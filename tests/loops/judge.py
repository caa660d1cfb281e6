"""One training loop with three optimizers: Optax's, and ours in 32 and in 8 bits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_lamblion
from optax_lamblion import StateOptions

# Small leaves are in 8 bits, too, as are the large ones of large models.
OPTIONS = StateOptions(min_8bit_size=8, block_size=32)


class Run(NamedTuple):
    """What comes of a loop."""

    start: Any
    """Parameters before it."""
    end: Any
    """Parameters after it."""
    states: tuple[Any, Any]
    """The optimizer's state before and after it."""


class Family(NamedTuple):
    """An optimizer by three names, and numbers that its defaults do not agree on."""

    optaxs: Callable
    name: str
    numbers: dict[str, float]

    def makers(self):
        """Factories of the same arguments: Optax's, ours in 32 and in 8 bits."""
        ours = [getattr(optax_lamblion, f"{self.name}{bits}bit") for bits in (32, 8)]
        return (
            functools.partial(self.optaxs, **self.numbers),
            functools.partial(ours[0], **self.numbers),
            functools.partial(ours[1], **self.numbers, options=OPTIONS),
        )


LION = Family(optax.lion, "lion", dict(weight_decay=0.1))
LAMB = Family(optax.lamb, "lamb", dict(eps=1e-6, weight_decay=0.1))
ADAMW = Family(optax.adamw, "adamw", dict(eps=1e-8, weight_decay=0.1))


def compare(loop, family, *, same=3e-5, near=0.2):
    """Runs `loop(make)`, which returns a `Run`, with each of a family's factories.

    In 32 bits the loop has to end where it ends with Optax, up to `same` of the way that parameters
    have gone. `1 - b2` for a `b2` of 0.999 has a relative error of 2**-25 / 0.001 in float32, its
    root half of that, and there are several ways to it: 3e-5 is two of them. One other sign in
    Lion's steps would be some hundredths. In 8 bits it is `near` of the way: moments have an error
    of some per cent, and signs turn where they nearly cancel out.
    """
    theirs, exact, coarse = map(loop, family.makers())
    way = length(theirs.start, theirs.end)
    assert np.isfinite(way) and way > 0
    assert length(exact.end, theirs.end) <= same * way
    assert length(coarse.end, exact.end) <= near * way
    for run in (exact, coarse):
        assert forms(run.states[1]) == forms(run.states[0])
        assert forms(run.end) == forms(theirs.end) == forms(run.start)
    codes = [x for x in jax.tree.leaves(coarse.states[1]) if x.dtype == np.uint8]
    assert any(np.any(x) for x in codes)
    return theirs, exact, coarse


def length(a, b):
    """The distance between two trees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    squares = [np.sum(np.abs(wide(x) - wide(y)) ** 2) for x, y in pairs]
    return float(np.sqrt(np.sum(squares)))


def wide(x):
    """An array as NumPy's, in double precision."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def forms(tree):
    """What has to stay as it is: structure, shapes and dtypes."""
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


# ------------------------------------------------------------------------------ something to learn


def data(seed=0, examples=32, inputs=32):
    """Inputs, and four numbers to be made of each."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, inputs)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x[:, :4] + x[:, 4:8]))


def batches(steps):
    """Other examples for every step."""
    return jax.tree.map(lambda x: x.reshape(steps, -1, x.shape[-1]), data(examples=16 * steps))


def linear(seed=0):
    """Parameters of a layer: one leaf for 8 bits, and one that is too small for them."""
    kernel = np.random.default_rng(seed).normal(size=(32, 4)) / 6
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(4)}


def loss_of(params, x, y):
    """The mean squared error of the layer."""
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)
