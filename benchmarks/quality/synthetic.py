"""Gradients that no training has: of every scale, heavy-tailed, sparse, and such as stop.

One leaf of 2,048 elements sees 2,000 of them. Its parameters do not move, so a step with 8-bit
state and one in float32 differ by the storage alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality.tasks import SEEDS
from benchmarks.quality.training import apart, error_quantiles
from benchmarks.quality.variants import FLOAT32
from pallas_kernels import dequantize

ELEMENTS = 2048
SCALES = (1.0, 1e-3, 1e-6, 1e-9, 1e-12)
TAIL = 0.05
"""The share of the steps at the end over which differences are averaged."""

KINDS = {
    "log-normal": "normal, times a log-normal scale of every element (sigma 1)",
    "heavy-tailed": "Student's t with 2 degrees of freedom: its variance is infinite",
    "sparse": "normal in 1 % of the elements, other ones at every step; zero elsewhere",
    "stopping": "normal; those of every other element are zero after a quarter of the steps",
    "turning": "mean 1; that of every other element is -0.1 after a quarter of the steps",
}


def gradient(kind, key, sizes, number, steps):
    """The gradient of a step, with `sizes` as the log-normal scales; `kind` is an index, traced."""
    odd = jnp.arange(ELEMENTS) % 2 == 1
    late = odd & (number >= steps // 4)
    noise = jax.random.normal(key, (ELEMENTS,))
    return jax.lax.switch(
        kind,
        (
            lambda: sizes * noise,
            lambda: student_t_2(jax.random.uniform(key, (ELEMENTS,), minval=2.0**-24)),
            lambda: noise * (jax.random.uniform(jax.random.fold_in(key, 1), (ELEMENTS,)) < 0.01),
            lambda: jnp.where(late, 0.0, noise),
            lambda: jnp.where(late, -0.1, 1.0) + 0.3 * noise,
        ),
    )


def student_t_2(p):
    """The quantiles of Student's t with 2 degrees of freedom, for `p` between 0 and 1."""
    return (2 * p - 1) / jnp.sqrt(2 * p * (1 - p))


def compare(rule, way, *, steps=2000):
    """What differs, of every kind of gradients and, of the first kind, every scale."""
    run = _compiled(rule, way, steps)
    found = {}
    cases = [("log-normal", scale) for scale in SCALES] + [(kind, 1.0) for kind in KINDS][1:]
    for kind, scale in cases:
        differences, late, (coded, exact), moments = run(list(KINDS).index(kind), scale)
        tail = max(1, int(TAIL * steps))
        differences, late = (np.asarray(x)[-tail:].mean(axis=0) for x in (differences, late))
        case = {}
        if rule.name == "lion":
            case["opposite"] = _rounded(differences[:, 1])
            differences, late = differences[:, 0], late[:, 0]
        else:
            case["error"] = _rounded(np.asarray(error_quantiles(coded, exact)).mean(axis=0))
        case["differs"] = _rounded(differences)
        if kind == "turning":
            case["late"] = _rounded(late)
        if kind == "stopping":
            case["left"] = [_rounded(_left(x)) for x in moments]
        found[f"{kind}, {scale:g}"] = case
    return found


def _left(moment):
    """The rms of stopped elements over that of the others, for every seed."""
    going, stopped = moment[:, ::2], moment[:, 1::2]
    return np.sqrt(np.mean(stopped**2, axis=1) / np.mean(going**2, axis=1))


def _compiled(rule, way, steps):
    tx, judge_tx = way.direction(rule), FLOAT32.direction(rule)
    params = jnp.ones(ELEMENTS)

    def of_seed(seed, kind, scale):
        key = jax.random.key(seed)
        sizes = jnp.exp(jax.random.normal(jax.random.fold_in(key, 2**20), (ELEMENTS,)))

        def step(carry, number):
            state, judge, _ = carry
            g = scale * gradient(kind, jax.random.fold_in(key, number), sizes, number, steps)
            direction, state = tx.update(g, state, params)
            exact, judge = judge_tx.update(g, judge, params)
            last = direction, exact
            # Of the elements whose gradient has turned, in "turning".
            return (state, judge, last), (
                apart(rule, *last),
                apart(rule, direction[1::2], exact[1::2]),
            )

        last = params, params
        start = tx.init(params), judge_tx.init(params), last
        (state, judge, last), (differences, late) = jax.lax.scan(step, start, jnp.arange(steps))
        return differences, late, last, (first_moment(state, way), first_moment(judge, FLOAT32))

    mapped = jax.jit(jax.vmap(of_seed, (0, None, None), (1, 1, 0, 0)))
    return functools.partial(mapped, jnp.arange(SEEDS))


def first_moment(state, way):
    """The first moments of a state of one leaf, as values."""
    if way.codec in (None, "bitsandbytes"):
        return state.mu
    return dequantize(state.mu, state.mu_absmax, block_size=way.block_size, codec=way.codec)


def _rounded(values):
    return [float(f"{x:.4g}") for x in np.asarray(values, float)]
