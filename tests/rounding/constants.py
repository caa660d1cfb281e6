"""Measures what the constants of the dither of stored moments are worth, in emulated states.

A stored moment lies between two levels of its code. It goes up where it lies further up than a
share `u` of the gap, and `u` is one number for a whole block:

    u = frac(step * A + leaf + offset(block)),

of which all but the first few binary digits are scrambled by a hash of the step. `A` is a stride,
another one for every slot (mu, nu, nu_max). A good stride spreads the `u` of successive steps
evenly, and still does so when only every P-th step matters: a gradient with a period of P steps
sees the stride `P * A`, and where that is close to a whole number, the same side is favoured for a
long time. `offset` is a hash of the block's number, or that number times another stride `B`, or
nothing. This script compares candidates of each, one at a time, with float32, with rounding to
nearest and with random numbers for every element:

    python -m tests.rounding.constants [--quick] [--part NAME]

It prints tables in Markdown. All rules of a table see the same gradients. In its first row ± is
the standard error of the mean over seeds, below it that of the difference from the first row. A
seed draws the gradients, the phase of the sequence and the number of the first block.
"""

import argparse
import functools
import time
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STRIDES = {
    "golden": 0x9E3779B9,
    "plastic": 0xC13FA9A9,
    "plastic^2": 0x91E10DA5,
    "cubic": 0xD1B54A33,  # 1 / x where x**4 = x + 1: the plastic number of one dimension more
    "sqrt(2)-1": 0x6A09E667,
    "sqrt(3)-1": 0xBB67AE85,
    "e-2": 0xB7E15163,
    "pi-3": 0x243F6A89,
}
DEFAULT = (STRIDES["golden"], STRIDES["plastic^2"], STRIDES["cubic"])
DEFAULT_B = STRIDES["plastic"]
PERIODS = (2, 3, 5, 7, 8, 11, 13, 21, 29, 34, 48, 55, 64)


class Rule(NamedTuple):
    """A way to draw `u`: a Weyl sequence with these constants, or one of the baselines."""

    name: str
    strides: tuple = DEFAULT
    block: int | str | None = DEFAULT_B
    leaf: bool = True
    even: int | None = None
    """How many digits of `u` are left as they are; None for what suits the average."""
    kind: str = "weyl"
    nearest: tuple = ()
    """The slots that are rounded to nearest instead."""


NEAREST = Rule("nearest", nearest=(0, 1, 2))
NEAREST_MU = Rule("only mu to nearest", nearest=(0,))
NEAREST_MAX = Rule("only nu_max to nearest", block="hash", nearest=(2,))
RANDOM = Rule("random bits", kind="random")
FLOAT32 = Rule("float32", kind="float32")


def stride(number):
    """The odd uint32 closest to a fraction of 2**32."""
    return int(number * 2.0**31) * 2 + 1 & 0xFFFFFFFF


def share(number):
    """A uint32 as a fraction of 2**32."""
    return number / 2.0**32


def lowbias32(x):
    """A hash of uint32 numbers: two multiplications and three shifts."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def offsets(rule, leaves, blocks, seed):
    """The phases of all blocks of all leaves at step 0, uint32."""
    random = np.random.default_rng(seed)
    phase, first = random.integers(2**32, dtype=np.uint32), random.integers(2**20, dtype=np.uint32)
    numbers = first * np.uint32(leaves == 1) + np.arange(blocks, dtype=np.uint32)
    if rule.block is None:
        numbers = np.zeros_like(numbers)
    else:
        numbers = lowbias32(numbers) if rule.block == "hash" else numbers * np.uint32(rule.block)
    names = [f"layers_{i}/kernel{seed}" for i in range(leaves)]
    leaf = np.array([zlib.crc32(x.encode()) if rule.leaf else 0 for x in names], np.uint32)
    return phase + leaf[:, None] + numbers


# The code and the two optimizers


def to_fraction(bits):
    """The upper 23 bits as a fraction, and half a unit more."""
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def rounded(x, u, signed):
    """What is read back of `x` after it was stored in blocks along its last axis."""
    top, power = (127, 3) if signed else (255, 8)
    size = jnp.abs(x)
    absmax = jnp.max(size, -1, keepdims=True)
    y = size / jnp.where(absmax > 0, absmax, 1)

    def level(k):
        return (k / top) ** power

    k = jnp.floor(jnp.exp2(jnp.log2(y) / power) * top)
    k = jnp.clip(k - (level(k) > y) + (level(k + 1) <= y), 0, top - 1)  # the root is not exact
    low, high = level(k), level(k + 1)
    k = k + (y > low + u * (high - low))
    if not signed:
        k = jnp.where(y > 0, jnp.maximum(k, 1), 0)  # a divisor never becomes zero
    return level(k) * absmax * jnp.sign(x)


def gradient(kind, noise, t, period):
    """Gradients of scale 1 at step t; of the columns, every other one may stop or turn."""
    odd = jnp.arange(noise.shape[-1]) % 2 == 1
    if kind == "pulse":  # large once in a period
        return jnp.where(t % period == 0, noise, 0.01 * noise)
    if kind == "alternate":  # a square wave
        return jnp.where(t % period < period // 2, 1.0, -1.0) + 0.3 * noise
    if kind == "stop":
        return jnp.where(odd & (t >= period), 0.0, noise)
    if kind == "turn":
        return jnp.where(odd & (t >= period), -0.1, 1.0) + 0.3 * noise
    return noise


def even_digits(decay):
    """How many digits are even: a tenth as many intervals as the average remembers steps.

    The fewest, 3, are those of second moments, whatever their decay.
    """
    return jnp.clip(jnp.floor(jnp.log2(0.1 / (1 - jnp.float32(decay)))), 3, 23).astype(jnp.uint32)


def draw(rules, t, slot, phases, key, shape, decay):
    """`u` of every rule in one slot: a number for every block, or for every element."""
    strides = jnp.array([r.strides[slot] for r in rules], jnp.uint32)[:, None, None]
    even = [even_digits(decay) if r.even is None else jnp.uint32(r.even) for r in rules]
    hashed = lowbias32(t.astype(jnp.uint32) + phases[0, 0, 0])
    scrambling = [jnp.where(n < 32, hashed >> jnp.minimum(n, 31), 0) for n in even]
    bits = t.astype(jnp.uint32) * strides + phases
    u = to_fraction(bits ^ jnp.stack(scrambling)[:, None, None])[..., None]
    u = jnp.where(jnp.array([slot in r.nearest for r in rules])[:, None, None, None], 0.5, u)
    if RANDOM in rules:
        which = jnp.array([r.kind == "random" for r in rules])[:, None, None, None]
        u = jnp.where(which, to_fraction(jax.random.bits(key, shape)), u)
    return u


def keep_exact(rules, stored, x):
    """Undoes the rounding of the rule that does not round."""
    which = jnp.array([r.kind == "float32" for r in rules])
    return jnp.where(which.reshape(-1, 1, 1, 1), x, stored) if FLOAT32 in rules else stored


@functools.partial(jax.jit, static_argnames=("rules", "kind", "steps"))
def lion(rules, kind, steps, scale, phases, key, period, b2):
    """Per step and rule: % of signs that differ from float32, |m8|/|m32| and % up in odd columns.

    Arrays are indexed by rule, leaf, block and element.
    """
    b1, exact = 0.9, jnp.zeros_like(scale)

    def step(carry, t):
        m8, m32 = carry
        k1, k2 = jax.random.split(jax.random.fold_in(key, t))
        g = scale * gradient(kind, jax.random.normal(k1, scale.shape), t, period)
        c8, c32 = b1 * m8 + (1 - b1) * g, b1 * m32 + (1 - b1) * g
        m8, m32 = b2 * m8 + (1 - b2) * g, b2 * m32 + (1 - b2) * g
        u = draw(rules, t, 0, phases, k2, scale.shape, b2)
        m8 = rounded(m8, u, True)
        axes = (1, 2, 3)
        left = jnp.mean(jnp.abs(m8[..., 1::2]), axes) / jnp.mean(jnp.abs(m32[..., 1::2]))
        wrong = 100 * jnp.mean(jnp.sign(c8) != jnp.sign(c32), axes)
        return (m8, m32), (wrong, left, 100 * jnp.mean(c8[..., 1::2] > 0, axes))

    start = jnp.zeros((len(rules), *scale.shape)), exact
    return jax.lax.scan(step, start, jnp.arange(steps))[1]


@functools.partial(jax.jit, static_argnames=("rules", "kind", "steps", "amsgrad"))
def lamb(rules, kind, steps, scale, phases, key, period, b2, amsgrad=False):
    """Per step: worst and rms error of u, drift of log v, log norm ratio of u, u of odd columns.

    The error is relative to the rms of u; the norm ratio is that of every leaf.
    """
    b1, eps, zeros = 0.9, 1e-8, jnp.zeros_like(scale)

    def direction(m, v, t):
        return m / (1 - b1 ** (t + 1.0)) / (jnp.sqrt(v) + eps)

    def norm(x):
        return jnp.sqrt(jnp.sum(x * x, (-1, -2)))

    def step(carry, t):
        (m8, v8, w8), (m32, v32, w32) = carry
        key_g, *keys = jax.random.split(jax.random.fold_in(key, t), 4)
        g = scale * gradient(kind, jax.random.normal(key_g, scale.shape), t, period)
        unbias = 1 / (1 - b2 ** (t + 1.0))
        m32, v32 = b1 * m32 + (1 - b1) * g, b2 * v32 + (1 - b2) * g * g
        m8, v8 = b1 * m8 + (1 - b1) * g, b2 * v8 + (1 - b2) * g * g
        us = [
            draw(rules, t, i, phases, k, scale.shape, decay)
            for i, (k, decay) in enumerate(zip(keys, (b1, 0.0, 0.0), strict=True))
        ]
        if amsgrad:
            w8, w32 = jnp.maximum(w8, v8 * unbias), jnp.maximum(w32, v32 * unbias)
            w8 = rounded(w8, us[2], False)
        m8, v8 = rounded(m8, us[0], True), rounded(v8, us[1], False)
        last8, last32 = (w8, w32) if amsgrad else (v8 * unbias, v32 * unbias)
        u8, u32 = direction(m8, last8, t), direction(m32, last32, t)
        axes, positive = (1, 2, 3), last32 > 0
        error = jnp.abs(u8 - u32)
        rms = jnp.sqrt(jnp.mean(error**2, axes) / jnp.mean(u32**2))
        log = jnp.log(jnp.where(positive, last8 / jnp.where(positive, last32, 1), 1))
        odd = jnp.sqrt(jnp.mean(u8[..., 1::2] ** 2, axes) / jnp.mean(u8[..., ::2] ** 2, axes))
        ratio = jnp.log(norm(u8) / norm(u32))
        out = (jnp.max(error, axes), rms, jnp.mean(log, axes), ratio, odd)
        return ((m8, v8, w8), (m32, v32, w32)), out

    state = jnp.zeros((len(rules), *scale.shape))
    start = (state, state, state), (zeros, zeros, zeros)
    return jax.lax.scan(step, start, jnp.arange(steps))[1]


@functools.partial(jax.jit, static_argnames=("rules", "steps"))
def least_squares(rules, steps, phases, key, b2):
    """Lion's final loss on a noisy quadratic of 1,024 parameters, for every rule."""
    shape = (1, 4, 256)
    key, k1, k2 = jax.random.split(key, 3)
    target, curvature = jax.random.normal(k1, shape), jnp.exp(jax.random.normal(k2, shape))

    def step(carry, t):
        m, x = carry
        k1, k2 = jax.random.split(jax.random.fold_in(key, t))
        g = curvature * (x - target) + 0.1 * jax.random.normal(k1, shape)
        x = x - 0.002 * (1 - t / steps) * jnp.sign(0.9 * m + 0.1 * g)
        m = b2 * m + (1 - b2) * g
        u = draw(rules, t, 0, phases, k2, shape, b2)
        return (keep_exact(rules, rounded(m, u, True), m), x), None

    start = jnp.zeros((len(rules), *shape))
    (_, x), _ = jax.lax.scan(step, (start, start), jnp.arange(steps))
    return jnp.sum(curvature * (x - target) ** 2, (1, 2, 3)) / 2


# Runs over seeds


def setup(rules, seed, sigma=0.0, leaves=1, blocks=64, size=256):
    """Scales of the gradients, phases of the rules and a key."""
    scale = np.exp(sigma * np.random.default_rng(seed).normal(size=(leaves, blocks, size))) * 1e-3
    phases = np.stack([offsets(r, leaves, blocks, seed) for r in rules])
    return jnp.asarray(scale, jnp.float32), jnp.asarray(phases), jax.random.key(seed)


def run(function, rules, seeds, steps, kind="noise", period=1, b2=None, amsgrad=None, **sizes):
    """The statistics of a function for all seeds: a list of arrays (seed, step, rule, ...)."""
    more = {} if amsgrad is None else {"amsgrad": amsgrad}
    b2 = b2 or (0.99 if function is lion else 0.999)
    out = []
    for seed in range(seeds):
        scale, phases, key = setup(rules, seed, **sizes)
        out.append(function(tuple(rules), kind, steps, scale, phases, key, period, b2, **more))
    return [np.asarray(x, np.float64) for x in map(np.stack, zip(*out, strict=True))]


def window(x, steps, width=20):
    """Means over the steps that end at each of `steps`: (seed, rule, step)."""
    return np.stack([x[:, t - width : t].mean(1) for t in steps], -1)


def with_errors(x, digits):
    """(seed, rule) as text for every rule: the mean and the standard error of the docstring."""
    mean, seeds = x.mean(0), len(x)
    difference = np.concatenate([x[:, :1], x[:, 1:] - x[:, :1]], 1)
    error = difference.std(0, ddof=1) / seeds**0.5 if seeds > 1 else np.zeros_like(mean)
    return [f"{m:.{digits}f} ± {e:.{digits}f}" for m, e in zip(mean, error, strict=True)]


def table(title, head, names, columns):
    """Prints a table with a row for every name."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in zip(names, *columns, strict=True):
        print(f"| {' | '.join(row)} |", flush=True)


# Theory: how a stride meets a period


def distances(a, periods):
    """How far `P * a` is from a whole number, for every stride and period."""
    x = np.multiply.outer(np.asarray(a), periods)
    return np.abs(x - np.round(x))


def beats(a, periods, b2, harmonics=8):
    """How much of the error of rounding every P-th step a moving average lets through.

    The error follows `P * a` with a sawtooth, whose harmonics weigh 1 / h. The unit is what it
    lets through of independent random numbers.
    """
    decay = b2 ** np.asarray(periods, float)
    total = 0
    for h in range(1, harmonics + 1):
        turn = np.exp(2j * np.pi * h * np.multiply.outer(np.asarray(a), periods))
        total = total + np.abs((1 - decay) / (1 - decay * turn)) ** 2 / h**2
    weights = sum(1 / h**2 for h in range(1, harmonics + 1))
    return np.sqrt(total / weights * (1 + decay) / (1 - decay))


def combination(a, b, most=16):
    """The whole numbers i, j with the smallest `|i A + j B| * max(|i|, |j|)**2`, and the value.

    Where it is small, block n + j does at step t + i what block n does at step t.
    """
    i, j = np.meshgrid(np.arange(-most, most + 1), np.arange(1, most + 1))
    x = i * a + j * b
    value = np.abs(x - np.round(x)) * np.maximum(np.abs(i), j) ** 2
    at = np.unravel_index(value.argmin(), value.shape)
    return i[at], j[at], value[at]


@functools.cache
def searched():
    """Two strides out of 20,000: with the largest smallest distance, with the smallest beats."""
    a = np.arange(1, 20001) * share(STRIDES["golden"]) % 1
    near = distances(a, np.arange(1, 65)).min(1)
    worst = np.maximum(*(beats(a, np.arange(1, 65), b2).max(1) for b2 in (0.99, 0.999)))
    return {
        "far from all": stride(a[near.argmax()]),
        "least beats": stride(a[worst.argmin()]),
    }


def strides_theory(quick):
    """Distances and beats of the strides."""
    periods = np.arange(2, 65)
    candidates = STRIDES | searched()
    a = np.array([share(x) for x in candidates.values()])
    near = distances(a, periods)
    columns = [
        [f"`0x{x:08X}`" for x in candidates.values()],
        [f"{x:.10f}" for x in a],
        [f"{x.min():.4f} (P = {periods[x.argmin()]})" for x in near],
    ]
    for b2 in (0.99, 0.999):
        gain = beats(a, periods, b2)
        columns.append([f"{x:.2f}" for x in np.sqrt(np.mean(gain**2, 1))])
        columns.append([f"{x.max():.2f} (P = {periods[x.argmax()]})" for x in gain])
        columns.append([f"{x:.2f}" for x in beats(a, [1], b2)[:, 0]])
    head = ["stride", "uint32", "share", "least distance of P A"]
    for b2 in (0.99, 0.999):
        head += [f"beats at {b2}: rms", "worst", "P = 1"]
    table("Periods of 2 to 64 steps, in theory", head, list(candidates), columns)

    names = {a: name for name, a in STRIDES.items()}
    columns = []
    for a in DEFAULT:
        best = [combination(share(a), share(b)) for b in candidates.values()]
        columns.append([f"{x:.2f} ({i}, {j})" for i, j, x in best])
    head = ["B", *(f"A {names[a]}: value (i, j)" for a in DEFAULT)]
    table("Where i A + j B is close to a whole number", head, list(candidates), columns)


# Measurements


def stride_rules(slot):
    """Rules that differ in the stride of one slot."""
    rules = []
    for name, a in (STRIDES | searched()).items():
        # Where another slot has the stride already, this shows what that costs.
        rules.append(Rule(name, (*DEFAULT[:slot], a, *DEFAULT[slot + 1 :]), "hash"))
    return rules


def lion_columns(rules, seeds, steps, sigma, digits=3, **options):
    """Columns with the % of signs that differ at these steps."""
    wrong = run(lion, rules, seeds, max(steps), sigma=sigma, **options)[0]
    wrong = window(wrong, steps)
    return [with_errors(wrong[..., i], digits) for i in range(len(steps))]


def lamb_columns(rules, seeds, steps, sigma, **options):
    """Columns with the worst and the rms error of u and the drift, over the last 200 steps."""
    worst, rms, drift = run(lamb, rules, seeds, steps, sigma=sigma, **options)[:3]
    last = [window(x, [steps], 200)[..., 0] for x in (worst, rms, drift)]
    return [with_errors(x, d) for x, d in zip(last, (3, 4, 4), strict=True)]


def lion_table(title, rules, quick, **options):
    """Signs that differ, with equal and with log-normal gradients."""
    seeds, steps = (2, (50, 200)) if quick else (3, (50, 200, 500, 1000))
    head, columns = ["rule"], []
    for sigma in (0, 1):
        head += [f"sigma {sigma}: step {t}" for t in steps]
        columns += lion_columns(rules, seeds, steps, sigma, **options)
    table(
        f"{title}: Lion, signs that differ from float32, %", head, [r.name for r in rules], columns
    )


def lamb_table(title, rules, quick, sigmas=(0, 1, 2), steps=3000, **options):
    """Errors of u and drift, with equal and with log-normal gradients."""
    seeds, steps = (2, 400) if quick else (3, steps)
    head, columns = ["rule"], []
    for sigma in sigmas:
        head += [f"sigma {sigma}: worst error", "rms error", "drift"]
        columns += lamb_columns(rules, seeds, steps, sigma, **options)
    title = f"{title}: LAMB, error of u and drift of log(v8/v32) at {steps} steps"
    table(title, head, [r.name for r in rules], columns)


def strides(quick):
    """Strides of the three slots, without periods."""
    baselines = [NEAREST, RANDOM]
    mu, nu, nu_max = ([*stride_rules(i), *baselines] for i in range(3))
    lion_table("Stride of mu", mu, quick, blocks=64)
    lamb_table("Stride of mu", mu, quick, (1,), steps=500, blocks=32)
    lamb_table("Stride of nu", nu, quick, blocks=48)
    nu_max.append(NEAREST_MAX)
    lamb_table("Stride of nu_max", nu_max, quick, (1,), steps=1000, blocks=32, amsgrad=True)


def over_periods(function, rules, kind, used, steps):
    """(seed, period, rule) of every statistic, averaged over the last half of the steps."""
    out = []
    for period in used:
        period = period + period % 2 * (kind == "alternate")
        stats = run(function, rules, 2, steps, kind=kind, period=period, sigma=1.0, blocks=16)
        width = (steps // 2) // period * period
        out.append([window(x, [steps], width)[..., 0] for x in stats[:3]])
    return [np.abs(np.stack(x, 1)) for x in zip(*out, strict=True)]


def periods(quick):
    """Strides of mu and nu with gradients that have a period."""
    used = PERIODS[::4] if quick else PERIODS
    measures = (
        (lion, 0, 300 if quick else 1000, {"mu: Lion, signs that differ, %": (0, 2)}),
        (lamb, 0, 300 if quick else 500, {"mu: LAMB, rms error of u": (1, 4)}),
        (
            lamb,
            1,
            300 if quick else 1500,
            {"nu: LAMB, rms error of u": (1, 4), "nu: LAMB, size of the drift": (2, 4)},
        ),
    )
    head = ["stride"]
    for kind in ("pulse", "alternate"):
        head += [f"{kind}: mean", "worst", *(f"P = {p}" for p in used if p in (8, 13, 21, 34, 55))]
    for function, slot, steps, titles in measures:
        rules = [*stride_rules(slot), NEAREST, RANDOM]
        stats = [over_periods(function, rules, k, used, steps) for k in ("pulse", "alternate")]
        for title, (index, digits) in titles.items():
            columns = []
            for kind in stats:
                x, mean = kind[index], kind[index].mean(0)
                columns.append(with_errors(x.mean(1), digits))
                columns.append([f"{c.max():.{digits}f} (P = {used[c.argmax()]})" for c in mean.T])
                for p, cells in zip(used, mean, strict=True):
                    if p in (8, 13, 21, 34, 55):
                        columns.append([f"{c:.{digits}f}" for c in cells])
            names = [r.name for r in rules]
            table(f"Gradients with a period, {title}", head, names, columns)


def offset_rules(strides=DEFAULT):
    """A hash, lattices with several strides, and one number for all blocks."""
    lattices = dict(STRIDES)
    lattices["golden + plastic"] = (STRIDES["golden"] + STRIDES["plastic"]) % 2**32 | 1
    lattices["2^-8"] = 2**24 + 1
    rules = [Rule("hash", strides, "hash")]
    rules += [Rule(f"lattice {name}", strides, b) for name, b in lattices.items()]
    return [*rules, Rule("none", strides, None)]


def offset(quick):
    """Offsets of the blocks."""
    rules = [*offset_rules(), NEAREST, RANDOM]
    lion_table("Offset of a block", rules, quick, blocks=128)
    lamb_table("Offset of a block", rules, quick, (0, 1), blocks=32)
    wobble_table("Offset of a block", rules, quick, 1, (4, 16, 128))


def deviation(x):
    """The standard deviation along the last axis around a straight line."""
    t = np.linspace(-1, 1, x.shape[-1])
    x = x - x.mean(-1, keepdims=True)
    x = x - t * (x @ t / (t @ t))[..., None]
    return x.std(-1)


def wobble(rules, quick, leaves, blocks):
    """(seed, rule): the deviation over the steps of the log norm of u, per leaf and of all."""
    seeds, steps = (2, 250) if quick else (3, 500)
    ratio = run(lamb, rules, seeds, steps, leaves=leaves, blocks=blocks)[3][:, -200:]
    ratio = np.moveaxis(ratio, 1, -1)  # (seed, rule, leaf, step)
    alone = np.sqrt(np.mean(deviation(ratio) ** 2, -1))
    return 100 * alone, 100 * deviation(ratio.mean(2))


def wobble_table(title, rules, quick, leaves, sizes):
    """How the norm of u wobbles from step to step, in leaves of several sizes."""
    head, columns = ["rule"], []
    for blocks in sizes:
        alone, together = wobble(rules, quick, leaves, blocks)
        head.append(f"{blocks} blocks: one leaf")
        columns.append(with_errors(alone, 3))
        if leaves > 1:
            head.append(f"mean of {leaves}")
            columns.append(with_errors(together, 3))
    table(f"{title}: LAMB, wobble of the norm of u, %", head, [r.name for r in rules], columns)


def leaves(quick):
    """Offsets of the leaves."""
    rules = [
        Rule("hash, leaf offset", block="hash"),
        Rule("hash, no leaf offset", block="hash", leaf=False),
        Rule("lattice, leaf offset"),
        Rule("lattice, no leaf offset", leaf=False),
        Rule("none, leaf offset", block=None),
        Rule("none, no leaf offset", block=None, leaf=False),
        NEAREST,
        RANDOM,
    ]
    wobble_table("Many leaves", rules, quick, 50, (1, 8))


def main_rules():
    """The rules that are compared where neither strides nor offsets are in question."""
    hashed, none = Rule("hash", block="hash"), Rule("none", block=None)
    return [Rule("lattice"), hashed, none, NEAREST, RANDOM]


def decays(quick):
    """Decays b2."""
    rules = main_rules()
    seeds, names = 2, [r.name for r in rules]
    values = (0.95, 0.99, 0.995, 0.998, 0.999, 0.9999)
    steps = 400 if quick else 1000
    for sigma in (0, 1):
        columns = []
        for b2 in values:
            wrong = run(lion, rules, seeds, steps, b2=b2, sigma=sigma, blocks=32)[0]
            columns.append(with_errors(window(wrong, [steps], 200)[..., 0], 2))
        title = f"Decay b2, sigma {sigma}: Lion, signs that differ at {steps} steps, %"
        table(title, ["rule", *map(str, values)], names, columns)
        columns = []
        for b2 in values:
            stats = run(lamb, rules, seeds, steps, b2=b2, sigma=sigma, blocks=16)
            rms, drift = (with_errors(window(x, [steps], 200)[..., 0], 3) for x in stats[1:3])
            columns.append([f"{a}; {b}" for a, b in zip(rms, drift, strict=True)])
        title = f"Decay b2, sigma {sigma}: LAMB at {steps} steps, rms error of u; drift"
        table(title, ["rule", *map(str, values)], names, columns)


def blocks(quick):
    """Sizes of the blocks."""
    rules = main_rules()
    seeds, names = 2, [r.name for r in rules]
    steps, sizes = 200 if quick else 600, (32, 256, 1024, 4096)
    columns = []
    for size in sizes:
        shape = dict(sigma=1.0, blocks=16384 // size, size=size)
        wrong = run(lion, rules, seeds, steps, **shape)[0]
        stats = run(lamb, rules, seeds, steps, **shape)
        cells = [with_errors(window(wrong, [steps], 100)[..., 0], 2)]
        cells += [with_errors(window(x, [steps], 100)[..., 0], 3) for x in stats[1:3]]
        columns.append(["; ".join(x) for x in zip(*cells, strict=True)])
    title = f"Block sizes, sigma 1, {steps} steps: Lion, signs that differ, %; LAMB, rms; drift"
    table(title, ["rule", *map(str, sizes)], names, columns)


def stall(quick):
    """Gradients that stop or turn, and least squares."""
    rules = main_rules() + [
        NEAREST_MU,
        Rule("golden lattice", block=STRIDES["golden"]),
        Rule("mu: sqrt(2)-1", (STRIDES["sqrt(2)-1"],) * 3),
        Rule("mu: plastic", (STRIDES["plastic"],) * 3),
        Rule("mu: pi-3", (STRIDES["pi-3"],) * 3),
    ]
    names, after, stop = [r.name for r in rules], (200, 500, 900), 100
    at = [stop + x for x in after]
    left = window(run(lion, rules, 2, max(at), kind="stop", period=stop, blocks=32)[1], at, 1)
    columns = [with_errors(left[..., i], 2) for i in range(3)]
    at = [500 + x for x in (100, 200, 500)]
    up = window(run(lion, rules, 2, max(at), kind="turn", period=500, blocks=16)[2], at, 1)
    columns += [with_errors(up[..., i], 1) for i in range(3)]
    head = ["rule", *(f"stopped: mean abs m8 / m32 after {t}" for t in after)]
    head += [f"turned to -0.1: wrong way after {t}, %" for t in (100, 200, 500)]
    steps = (1000,) if quick else (1000, 5000, 20000)
    odd = run(lamb, rules, 2, max(steps), kind="stop", period=20, blocks=4)[4]
    for t in steps:
        columns.append([f"{x:.1e}" for x in odd[:, t - 1].mean(0)])
        head.append(f"LAMB: u stopped / live after {t}")
    table("Gradients that stop or turn", head, names, columns)
    squares_table("Stalls", rules, quick)


def squares_table(title, rules, quick):
    """Prints what Lion makes of noisy least squares."""
    rules = [FLOAT32, *rules]
    values, columns = (0.99, 0.995, 0.998, 0.999, 0.9999), []
    for b2 in values:
        losses = []
        for seed in range(2 if quick else 5):
            phases = jnp.asarray(np.stack([offsets(r, 1, 4, seed) for r in rules]))
            key = jax.random.key(seed)
            losses.append(least_squares(tuple(rules), 2000 if quick else 8000, phases, key, b2))
        columns.append(with_errors(np.stack(losses), 4))
    title = f"{title}: noisy least squares, Lion's final loss, by b2"
    table(title, ["rule", *map(str, values)], [r.name for r in rules], columns)


def digits(quick):
    """How many digits of `u` are even, and how the rest lets go of stopped momentum."""
    rules = [Rule("by decay"), Rule("all digits", even=32)]
    rules += [Rule(f"{n} digits", even=n) for n in (6, 5, 4, 3, 2, 0)]
    rules += [NEAREST, RANDOM]
    lion_table("Even digits", rules, quick, blocks=64)
    lamb_table("Even digits", rules, quick, blocks=48, steps=500 if quick else 3000)
    squares_table("Even digits", rules, quick)
    seeds, stop, after = 2 if quick else 5, 100, (200, 500, 700, 900)
    at = [stop + x for x in after]
    left = window(run(lion, rules, seeds, max(at), kind="stop", period=stop)[1], at, 1)
    columns = [with_errors(left[..., i], 2) for i in range(len(after))]
    head = ["rule", *(f"stopped: mean abs m8 / m32 after {t}" for t in after)]
    table("Even digits: gradients that stop", head, [r.name for r in rules], columns)


PARTS = {
    "digits": digits,
    "theory": strides_theory,
    "strides": strides,
    "periods": periods,
    "offset": offset,
    "leaves": leaves,
    "decays": decays,
    "blocks": blocks,
    "stall": stall,
}


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and seeds")
    parser.add_argument("--part", choices=PARTS, help="only these tables")
    options = parser.parse_args()
    for name, part in PARTS.items():
        if options.part in (None, name):
            start = time.perf_counter()
            part(options.quick)
            print(f"\n({name}: {time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
