"""Independent judges: what a codec and a step must produce, in float64 NumPy.

Nothing here imports the library or shares code with it. Codebooks are tables of 256 numbers, the
nearest level is found by looking at all of them, and the steps are the documented equations in
float64. A rounding that is free (a tie, a stochastic slot) is judged, not predicted: the judge
says which codes were allowed, and the update is computed from the codes that were stored.
"""

import math
from typing import NamedTuple

import numpy as np

CODECS = ("power", "dynamic", "linear")
FLOAT32_MAX = float(np.finfo(np.float32).max)
HISTORY = 100  # squared gradient norms that percentile clipping remembers


# Codebooks


def bitsandbytes_map(signed):
    """bitsandbytes' dynamic map, rebuilt from its description: 256 sorted float32 values.

    Decade `i` of seven holds the middles of 2**i (unsigned: 2**(i+1)) equal parts of [0.1, 1],
    times 10**(i-6). Exact 0 and exact 1 complete it; there is no -1.
    """
    decades = []
    for i in range(7):
        edges = np.linspace(0.1, 1, (2**i if signed else 2 ** (i + 1)) + 1, dtype=np.float32)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        decades.append(np.float32(10.0 ** (i - 6)) * middles)
    positive = np.concatenate(decades)
    both = [-positive, positive] if signed else [positive]
    return np.sort(np.concatenate([*both, np.float32([0, 1])]))


def closed_form_map(signed):
    """The same map as a formula of the code, in float64: the two must agree within 2 ulp."""
    values = np.zeros(256)
    for code in range(256):
        distance = abs(code - 127) if signed else code + 1
        if code == 255:
            values[code] = 1.0
        elif code != (127 if signed else 0):
            octave = int(math.log2(distance))
            i = octave if signed else octave - 1
            part = (distance - 2**octave + 0.5) / 2**octave
            level = 10.0 ** (i - 6) * (0.1 + 0.9 * part)
            values[code] = -level if signed and code < 127 else level
    return values


def levels(codec, signed):
    """The value of every code, float64[256], ascending in the code."""
    if codec == "dynamic":
        return bitsandbytes_map(signed).astype(np.float64)
    exponent = {"power": 3 if signed else 8, "linear": 1}[codec]
    step, steps = (np.arange(256) - 128, 127) if signed else (np.arange(256), 255)
    return np.sign(step) * np.abs(step / steps) ** exponent


def zero_code(codec, signed):
    """The code whose value is exactly 0."""
    return int(np.flatnonzero(levels(codec, signed) == 0)[0])


def lowest_code(codec, signed):
    """The lowest code that is ever written: the symmetric signed codes leave 0 unused."""
    return 1 if signed and codec != "dynamic" else 0


def _tables(codec, signed):
    """Every level with the middles to its neighbours; unused and missing ones are infinite."""
    table = levels(codec, signed)
    table[: lowest_code(codec, signed)] = -np.inf
    return table, np.concatenate([[-np.inf], table, [np.inf]])


def nearest(y, codec, signed, tie=1e-6):
    """Brute force: the codes nearest to `y`, and where a second one is as near.

    A tie means that the two smallest distances differ by less than `tie` times their sum. Of
    bitsandbytes the dynamic signed map takes its sign rule too: a negative value that would
    round to zero gets the smallest negative level (code 126) instead.
    """
    table, _ = _tables(codec, signed)
    y = np.asarray(y, np.float64).ravel()
    codes, ties = np.empty(y.shape, np.uint8), np.empty(y.shape, bool)
    for start in range(0, y.size, 8192):
        part = slice(start, start + 8192)
        distance = np.abs(y[part, None] - table)
        if codec == "dynamic" and signed:
            distance[y[part] < 0, 127:] = np.inf
        codes[part] = distance.argmin(axis=1)
        first, second = np.partition(distance, 1, axis=1)[:, :2].T
        ties[part] = second - first < tie * (first + second)
    return codes, ties


def nearest_excess(y, codes, codec, signed):
    """How much further than the nearest level `codes` lie from `y`, and the gap around `y`.

    The fast form of `nearest` for many values; (0, gap) is a perfect code.
    """
    table, padded = _tables(codec, signed)
    y, codes = np.asarray(y, np.float64).ravel(), np.asarray(codes).ravel()
    above = np.searchsorted(table, y)  # table[above - 1] < y <= table[above]
    low, high = padded[above], padded[above + 1]
    if codec == "dynamic" and signed:
        high = np.where((y < 0) & (high == 0), low, high)
        low = np.where((y < 0) & ~np.isfinite(low), high, low)
    best = np.minimum(np.abs(y - low), np.abs(y - high))
    gap = np.where(np.isfinite(high - low), high - low, 0.0)
    forbidden = (y < 0) & (codes >= 127) if codec == "dynamic" and signed else np.False_
    return np.where(forbidden, np.inf, np.abs(y - table[codes]) - best), gap


def neighbours(y, codec, signed, zero_rule=False):
    """The two codes that stochastic rounding may choose for `y`; equal on an exact level.

    With the zero rule (second moments) only an exact 0 may be stored as zero.
    """
    table, _ = _tables(codec, signed)
    y = np.asarray(y, np.float64)
    lower = np.clip(np.searchsorted(table, y, side="right") - 1, lowest_code(codec, signed), 255)
    upper = np.where((table[lower] < y) & (lower < 255), lower + 1, lower)
    if zero_rule:
        lower = np.where((y > 0) & (lower == zero_code(codec, signed)), upper, lower)
    return lower, upper


def admissible(y, codes, codec, signed, slack=0.0, zero_rule=False):
    """Where stochastic rounding may have stored `codes` for values within `slack` of `y`."""
    lower, _ = neighbours(y - slack, codec, signed)
    _, upper = neighbours(y + slack, codec, signed)
    inside = (codes >= lower) & (codes <= upper)
    return inside & ~((codes == zero_code(codec, signed)) & (y > 0)) if zero_rule else inside


# Blocks


def absmax_shape(shape, block_size):
    """The shape of the scales: rows keep theirs when blocks tile the last dimension.

    No block size means one block, and no blocks at all where there are no elements.
    """
    if block_size is None:
        return (min(math.prod(shape), 1),)
    if shape and shape[-1] % block_size == 0:
        return (*shape[:-1], shape[-1] // block_size)
    return (-(-math.prod(shape) // block_size),)


def block_of(size, block_size):
    """The block that each flat element belongs to."""
    return np.arange(size) // (block_size or max(size, 1))


def block_absmax(x, block_size):
    """The largest magnitude of every block, in the documented shape."""
    flat = np.abs(np.asarray(x, np.float64)).ravel()
    absmax = np.zeros(math.prod(absmax_shape(np.shape(x), block_size)))
    np.maximum.at(absmax, block_of(flat.size, block_size), flat)
    return absmax.reshape(absmax_shape(np.shape(x), block_size))


def scale_of(absmax, shape, block_size):
    """The scale of every element, in the shape of the tensor."""
    index = block_of(math.prod(shape), block_size)
    return np.asarray(absmax, np.float64).ravel()[index].reshape(shape)


def normalize(x, absmax, block_size):
    """`x` over the scale of its block; a block of zeros stays zero."""
    scale = scale_of(absmax, np.shape(x), block_size)
    return np.divide(x, scale, out=np.zeros(np.shape(x)), where=scale > 0)


def decode(codes, absmax, block_size, codec, signed):
    """What stored codes mean. Zero is zero, whatever the scale holds."""
    value = levels(codec, signed)[codes]
    scale = scale_of(absmax, np.shape(codes), block_size)
    return np.multiply(value, scale, out=np.zeros(np.shape(codes)), where=value != 0)


# Steps


class LionStep(NamedTuple):
    """One step of Lion on one leaf. `mixed` is what the direction is the sign of."""

    mixed: np.ndarray
    direction: np.ndarray
    mu: np.ndarray
    update: np.ndarray
    skipped: np.ndarray


class Moments(NamedTuple):
    """The new moments of LAMB on one leaf, before any rounding."""

    mu: np.ndarray
    nu: np.ndarray
    skipped: np.ndarray


class LambUpdate(NamedTuple):
    """The update of LAMB; `magnitude` is the sum of the sizes of the terms of `direction`."""

    direction: np.ndarray
    magnitude: np.ndarray
    ratio: float
    update: np.ndarray


def _not_finite(*slots):
    """Elements that float32 slots could not hold; a non-finite gradient leads here too."""
    return np.any([~(np.abs(slot) <= FLOAT32_MAX) for slot in slots], axis=0)


@np.errstate(invalid="ignore", over="ignore")
def lion_step(g, mu, p, *, learning_rate, b1, b2, weight_decay=0.0, grad_scale=1.0):
    """Lion with decoupled decay, from the decoded momentum `mu`."""
    g = grad_scale * g
    mixed, new_mu = (1 - b1) * g + b1 * mu, (1 - b2) * g + b2 * mu
    skipped = _not_finite(mixed, new_mu)
    direction = np.where(skipped, 0, np.sign(mixed))
    update = np.where(skipped, 0, -learning_rate * (direction + weight_decay * p))
    return LionStep(mixed, direction, np.where(skipped, mu, new_mu), update, skipped)


@np.errstate(invalid="ignore", over="ignore")
def lamb_moments(g, mu, nu, p, *, b1, b2, l2_decay=0.0, grad_scale=1.0):
    """The two averages, from the decoded moments; `l2_decay` is for `adam_w_mode=False`."""
    g = grad_scale * g + l2_decay * p
    new_mu, new_nu = (1 - b1) * g + b1 * mu, (1 - b2) * g * g + b2 * nu
    skipped = _not_finite(new_mu, new_nu)
    return Moments(np.where(skipped, mu, new_mu), np.where(skipped, nu, new_nu), skipped)


def bias_corrected(moment, decay, t, bias_correction=True):
    """A moment after `t` steps (from 1), freed from its start at zero."""
    return moment / (1 - decay**t) if bias_correction else moment


def lamb_update(
    mu_hat, nu_hat, p, skipped, *, learning_rate, eps, weight_decay=0.0, max_unorm=None,
    trust_clip=None,
):  # fmt: skip
    """Direction, trust ratio and update from the (stored and decoded) moments.

    Skipped elements get no update, so they add nothing to its norm; the norm of the parameters is
    that of the whole leaf. `weight_decay` is the decoupled one.
    """
    adam, decay = mu_hat / (np.sqrt(nu_hat) + eps), weight_decay * p
    direction = np.where(skipped, 0, adam + decay)
    magnitude = np.where(skipped, 0, np.abs(adam) + np.abs(decay))
    p_norm, u_norm = np.linalg.norm(p), np.linalg.norm(direction)
    ratio = 1.0
    if p_norm > 0 and u_norm > 0:
        ratio = p_norm / u_norm if max_unorm is None else min(1, max_unorm * p_norm / u_norm)
    if trust_clip is not None:
        ratio = float(np.clip(ratio, *trust_clip))
    return LambUpdate(direction, magnitude, ratio, -learning_rate * ratio * direction)


def percentile_scale(history, g, t, percentile):
    """The ring of squared gradient norms after step `t` (from 1), and the factor on the gradient.

    A gradient longer than the given percentile of the last hundred is cut down to it.
    """
    squared = float(np.sum(np.where(np.isfinite(g), g, 0.0) ** 2))
    history = np.array(history, np.float64)
    history[slice(None) if t == 1 else t % HISTORY] = squared
    norm, limit = math.sqrt(squared), math.sqrt(np.sort(history)[percentile])
    return history, limit / norm if norm > limit else 1.0
