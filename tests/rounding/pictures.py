"""Draws the pictures of `docs/rounding.md`, with the optimizers themselves.

    python -m tests.rounding.pictures [FOLDER]

It writes them to `docs/`, each for light and for dark pages, and prints the numbers that the page
quotes. Four ways to store a moment are compared: float32; 8 bits with dithered rounding, which is
what the library does; the same codes with momentum rounded to the nearest level; and bitsandbytes'
map, where everything is rounded to the nearest level. About two minutes on two cores.
"""

import contextlib
import functools
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from optax_lamblion import StateOptions, scale_by_lamb, scale_by_lion
from optax_lamblion.demo.themes import BLUE, GREEN, ORANGE, PALE_GREY, save_in_themes
from pallas_kernels import dequantize
from pallas_kernels.arithmetic import codecs
from pallas_kernels.arithmetic.dither import Dither, even_digits_for

DOCS = Path(__file__).parents[2] / "docs"


class Way(NamedTuple):
    """A way to keep a moment."""

    name: str
    bits: int
    codec: str
    dithered: bool
    """Whether momentum is; second moments are in any case."""

    def options(self):
        """Arguments of an optimizer that keeps its moments so."""
        return dict(bits=self.bits, options=StateOptions(codec=self.codec, min_8bit_size=0))

    @contextlib.contextmanager
    def in_force(self):
        """Where optimizers are built that are to round so."""
        kinds = {
            kind: codec._replace(dithered=codec.dithered and (self.dithered or not codec.signed))
            for kind, codec in codecs.CODECS.items()
        }
        with mock.patch.dict(codecs.CODECS, kinds):
            yield


FLOAT32 = Way("float32", 32, "power", True)
DITHER = Way("8 bits, dithered", 8, "power", True)
NEAREST = Way("8 bits, momentum to nearest", 8, "power", False)
MAP = Way("bitsandbytes' map, nearest", 8, "dynamic", False)
LOOKS = {
    FLOAT32: dict(color=PALE_GREY, linewidth=5),
    NEAREST: dict(color=ORANGE, linewidth=1.6),
    MAP: dict(color=GREEN, linewidth=1.6, ls="--"),
    DITHER: dict(color=BLUE, linewidth=1.6),
}
BLOCK = 256


def run(way, rule, gradient, steps, read, shape=(16, BLOCK), **options):
    """What `read(updates, state)` says after every step of a rule on `gradient(t)`."""
    with way.in_force():
        tx = rule(**way.options(), **options)
        params = jnp.ones(shape)

        def step(state, t):
            updates, state = tx.update(gradient(t), state, params)
            return state, read(updates, state)

        return np.asarray(jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(steps))[1])(
            tx.init(params)
        ))  # fmt: skip


ODD = jnp.arange(BLOCK) % 2 == 1


def momentum(way):
    """The momentum of a state of Lion, as numbers."""

    def read(_, state):
        if state.mu_absmax is None:
            return state.mu
        return dequantize(state.mu, state.mu_absmax, codec=way.codec)

    return read


@functools.cache
def decay(way, steps=900, share=0.02):
    """The momentum of elements whose gradient stops, beside others that go on: mean and one."""

    def gradient(t):
        size = jnp.where(ODD, share, 1.0)
        return jnp.broadcast_to(jnp.where(ODD & (t >= 500), 0.0, size), (16, BLOCK))

    stored = run(way, scale_by_lion, gradient, 500 + steps, momentum(way))[499:, :, 1]
    mean = stored.mean(axis=1)
    print(f"stalls: {way.name}: momentum {mean[[0, 200, 500, 900]]}")
    return mean, stored[:, 0]


@functools.cache
def turning(way, to=-0.1, steps=1000):
    """The share of elements whose gradient has turned, and that still step the old way."""

    def gradient(t):
        return jnp.broadcast_to(jnp.where(ODD & (t >= 500), to, 1.0), (16, BLOCK))

    wrong = run(way, scale_by_lion, gradient, 500 + steps, lambda u, _: jnp.mean(u[:, ODD] > 0))
    print(f"stalls: {way.name}: old way {wrong[500::200]}")
    return wrong[500:]


@functools.cache
def stopped(way, steps=20_000):
    """LAMB: how long the step is of columns whose gradient has stopped, beside the others'."""

    def gradient(t):
        g = jax.random.normal(jax.random.fold_in(jax.random.key(2), t), (16, BLOCK))
        return jnp.where(ODD & (t >= 20), 0.0, g)

    def read(u, _):
        norms = [jnp.linalg.norm(jnp.where(which, u, 0.0)) for which in (ODD, ~ODD)]
        return norms[0] / norms[1]

    ratio = run(way, scale_by_lamb, gradient, steps, read)
    print(f"costs: {way.name}: stopped / live at 1000, 5000, 20000: {ratio[[999, 4999, -1]]}")
    return ratio


@functools.cache
def least_squares(way, b2, steps=8000, size=1024):
    """The loss of noisy least squares after Lion, with a learning rate that falls to zero."""
    target = jax.random.normal(jax.random.key(3), (size,))
    curvature = jnp.exp(jax.random.normal(jax.random.key(4), (size,)))
    with way.in_force():
        tx = scale_by_lion(b2=b2, **way.options())

    def step(carry, t):
        x, state = carry
        noise = 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(5), t), (size,))
        direction, state = tx.update(curvature * (x - target) + noise, state, x)
        return (x - 0.002 * (1 - t / steps) * direction, state), None

    x = jnp.zeros(size)
    (x, _), _ = jax.jit(lambda s: jax.lax.scan(step, (x, s), jnp.arange(steps)))(tx.init(x))
    loss = float(jnp.sum(curvature * (x - target) ** 2) / 2)
    print(f"costs: {way.name}: least squares at b2 {b2}: {loss}")
    return loss


def panels(count, height=3.2, width=4.6):
    """A figure with so many panels side by side."""
    figure = Figure((width * count, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid()
        ax.set_axisbelow(True)
    return figure, axes


def draw_rounding():
    """How a moment between two levels is rounded, and where `u` lies."""
    figure, (left, right) = panels(2)
    steps, value = np.arange(1, 61), 0.3
    dither = [
        Dither(jnp.uint32(t), jnp.uint32(0)).scrambled([even_digits_for(0.99)]) for t in steps
    ]
    u = np.array([float(d.fractions(0, jnp.uint32(0))) for d in dither])
    up = u < value
    left.axhspan(0, value, color=BLUE, alpha=0.08)
    left.plot(steps[up], u[up], "o", color=BLUE, markersize=4, label="rounded up")
    left.plot(steps[~up], u[~up], "o", color=PALE_GREY, markersize=4, label="rounded down")
    left.axhline(value, color=BLUE, linewidth=1)
    left.set(xlabel="step", ylabel="u, as a share of the gap", ylim=(0, 1.22))
    left.set_title("A value at 0.3 of a gap", fontsize=10, loc="left")
    left.legend(frameon=False, loc="upper right", fontsize=8, ncols=2)
    random = np.random.default_rng(0).random(steps.size) < value
    for name, hits, look in (
        ("random bits", random, dict(color=ORANGE, linewidth=1.6)),
        ("dither", up, LOOKS[DITHER]),
    ):
        right.plot(steps, np.cumsum(hits) - value * steps, label=name, **look)
    right.axhline(0, color=PALE_GREY, linewidth=1)
    right.set(xlabel="step", ylabel="times up, less the right number")
    right.set_title("The sum of the errors", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=8)
    print(f"rounding: dither is at most {abs(np.cumsum(up) - value * steps).max():.2f} off, random "
          f"bits {abs(np.cumsum(random) - value * steps).max():.2f}")  # fmt: skip
    return figure


def draw_stalls():
    """What becomes of a moment whose gradient stops, and of a gradient that turns."""
    figure, (left, right) = panels(2)
    for way in LOOKS:
        mean, _ = decay(way)
        wrong = turning(way)
        left.plot(mean, label=way.name, **LOOKS[way])
        right.plot(wrong, label=way.name, **LOOKS[way])
    _, one = decay(DITHER)
    left.plot(one, color=BLUE, linewidth=0.7, alpha=0.6, label="one element, dithered")
    left.set(xlabel="steps since the gradient stopped", ylabel="momentum", yscale="log")
    left.set_ylim(mean[0] * 1e-4, mean[0] * 2)
    left.set_title("A gradient that stops", fontsize=10, loc="left")
    right.set(xlabel="steps since the gradient turned", ylabel="share that steps the old way")
    right.set_title("A gradient that turns from 1 to -0.1", fontsize=10, loc="left")
    left.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def draw_costs():
    """What a stall costs in the end."""
    figure, (left, right) = panels(2)
    for way in LOOKS:
        ratio = stopped(way)
        steps = np.arange(1, len(ratio) + 1)
        left.plot(steps[20::50], np.maximum(ratio[20::50], 1e-9), label=way.name, **LOOKS[way])
    left.set(xlabel="step", ylabel="length of stopped / live columns", yscale="log", xscale="log")
    left.set_ylim(1e-9, 1e3)
    left.set_title("LAMB, half of the gradients stop", fontsize=10, loc="left")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    b2s = (0.99, 0.995, 0.998, 0.999, 0.9999)
    for way in LOOKS:
        losses = [least_squares(way, b2) for b2 in b2s]
        right.plot(range(len(b2s)), losses, marker="o", markersize=4, label=way.name, **LOOKS[way])
    right.set(xlabel="b2 of Lion", ylabel="loss after 8,000 steps", yscale="log")
    right.set_xticks(range(len(b2s)), [str(b2) for b2 in b2s])
    right.set_title("Noisy least squares, 1,024 parameters", fontsize=10, loc="left")
    return figure


PICTURES = {"rounding": draw_rounding, "stalls": draw_stalls, "costs": draw_costs}


def main(folder=DOCS):
    """Writes every picture."""
    for name, draw in PICTURES.items():
        save_in_themes(draw, Path(folder) / f"rounding-{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
