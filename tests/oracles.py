"""Independent judges: what a codec and a step must produce, in float64 NumPy.

Nothing here imports the library or shares code with it. Codebooks are tables of 256 numbers, the
nearest level is found by looking at all of them, and the steps are the documented equations in
float64. A rounding that is free (a tie, random bits) is judged, not predicted: the judge says which
codes were allowed, and the update is computed from the codes that were stored. Dithered rounding is
predicted, from the step, the leaf's name and the number of the block.
"""

import math
import zlib
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
    """The value of every code, float64[256]. Code 0 is 0; signed codes are in two's complement."""
    if codec == "dynamic":
        table = bitsandbytes_map(signed).astype(np.float64)
        # Its zero is in the middle, and there is one value more on the positive side.
        return np.roll(table, -127) if signed else table
    exponent = {"power": 3 if signed else 8, "linear": 1}[codec]
    code = np.arange(256)
    step, steps = (np.where(code > 127, code - 256, code), 127) if signed else (code, 255)
    return np.sign(step) * np.abs(step / steps) ** exponent


def written(codec, signed):
    """The codes that are ever written, by rising value: symmetric signed codes leave 128 unused."""
    codes = np.argsort(levels(codec, signed), kind="stable")
    return (codes[1:] if signed and codec != "dynamic" else codes).astype(np.uint8)


def ranks(codes, codec, signed):
    """Places of codes among the written ones; -1 for a code that is none of them."""
    places = np.full(256, -1)
    places[written(codec, signed)] = np.arange(written(codec, signed).size)
    return places[codes]


def _ladder(codec, signed):
    """The written codes, and their values."""
    codes = written(codec, signed)
    return codes, levels(codec, signed)[codes]


def nearest(y, codec, signed, tie=1e-6):
    """Brute force: the codes nearest to `y`, and where a second one is as near.

    A tie means that the two smallest distances differ by less than `tie` times their sum. Of
    bitsandbytes the dynamic signed map takes its sign rule too: a negative value that would
    round to zero gets the smallest negative level instead.
    """
    written, table = _ladder(codec, signed)
    y = np.asarray(y, np.float64).ravel()
    codes, ties = np.empty(y.shape, np.uint8), np.empty(y.shape, bool)
    for start in range(0, y.size, 8192):
        part = slice(start, start + 8192)
        distance = np.abs(y[part, None] - table)
        if codec == "dynamic" and signed:
            distance[np.ix_(y[part] < 0, table >= 0)] = np.inf
        codes[part] = written[distance.argmin(axis=1)]
        first, second = np.partition(distance, 1, axis=1)[:, :2].T
        ties[part] = second - first < tie * (first + second)
    return codes, ties


def nearest_excess(y, codes, codec, signed):
    """How much further than the nearest level `codes` lie from `y`, and the gap around `y`.

    The fast form of `nearest` for many values; (0, gap) is a perfect code.
    """
    _, table = _ladder(codec, signed)
    padded = np.concatenate([[-np.inf], table, [np.inf]])
    y, codes = np.asarray(y, np.float64).ravel(), np.asarray(codes).ravel()
    above = np.searchsorted(table, y)  # table[above - 1] < y <= table[above]
    low, high = padded[above], padded[above + 1]
    if codec == "dynamic" and signed:
        high = np.where((y < 0) & (high == 0), low, high)
        low = np.where((y < 0) & ~np.isfinite(low), high, low)
    best = np.minimum(np.abs(y - low), np.abs(y - high))
    gap = np.where(np.isfinite(high - low), high - low, 0.0)
    value = levels(codec, signed)[codes]
    forbidden = (y < 0) & (value >= 0) if codec == "dynamic" and signed else np.False_
    forbidden = forbidden | (ranks(codes, codec, signed) < 0)
    return np.where(forbidden, np.inf, np.abs(y - value) - best), gap


def neighbours(y, codec, signed, zero_rule=False):
    """The two codes that rounding may choose for `y`; equal on an exact level.

    With the zero rule (second moments) only an exact 0 may be stored as zero.
    """
    written, _ = _ladder(codec, signed)
    lower, upper = _places(np.asarray(y, np.float64), codec, signed)
    if zero_rule:
        lower = np.where((np.asarray(y) > 0) & (written[lower] == 0), upper, lower)
    return written[lower], written[upper]


def _places(y, codec, signed):
    _, table = _ladder(codec, signed)
    lower = np.clip(np.searchsorted(table, y, side="right") - 1, 0, table.size - 1)
    return lower, np.where((table[lower] < y) & (lower < table.size - 1), lower + 1, lower)


def admissible(y, codes, codec, signed, slack=0.0, zero_rule=False):
    """Where random rounding may have stored `codes` for values within `slack` of `y`."""
    lower, _ = _places(y - slack, codec, signed)
    _, upper = _places(y + slack, codec, signed)
    place = ranks(codes, codec, signed)
    inside = (place >= lower) & (place <= upper)
    return inside & ~((np.asarray(codes) == 0) & (y > 0)) if zero_rule else inside


def turned(y, u, codec, signed, zero_rule=False):
    """The codes where rounding turns at the share `u` of every gap, counted from zero outwards.

    Returns:
      `(codes, distance, gap)`: how far `y` is from the next turn, and the gap that it lies in.
    """
    y, u = np.broadcast_arrays(np.asarray(y, np.float64), u)
    table = levels(codec, signed)
    table = np.sort(table[table >= 0])  # of rungs
    top, size = table.size - 1, np.abs(y)
    low = np.clip(np.searchsorted(table, size, side="right") - 1, 0, top - 1)
    gap = table[low + 1] - table[low]
    turn = table[low] + u * gap
    rung = low + (size > turn)
    distance = np.abs(size - turn)
    # The turns of the gaps beside it.
    below, above = np.maximum(low - 1, 0), np.minimum(low + 1, top - 1)
    for i in (below, above):
        other = table[i] + u * (table[i + 1] - table[i])
        distance = np.where(i == low, distance, np.minimum(distance, np.abs(size - other)))
    if zero_rule:
        rung = np.where((y > 0) & (rung == 0), 1, rung)
    sign = np.where(y < 0, -1, 1)
    rung = np.where(y < 0, np.minimum(rung, 127), rung) if signed else rung  # -1 may have no level
    return (sign * rung % 256).astype(np.uint8), distance, gap


def dither(step, leaf, slot, shape, block_size, decay=None):
    """`u` of dithered rounding for every element of a leaf, by its documentation.

    Args:
      step: The number of the step, from 1.
      leaf: The name of the leaf.
      slot: The number of the slot among those of its optimizer, from 0.
      shape: Of the leaf.
      block_size: Elements that share a scale.
      decay: Of the moving average that is stored; None for `u` whose digits are not scrambled.
    """
    strides = (0x9E3779B9, 0x91E10DA5, 0xD1B54A33)
    name = zlib.crc32(leaf.encode())
    number = np.atleast_1d(block_of(math.prod(shape), block_size)).astype(object)
    bits = (step * strides[slot] + name + number * 0xC13FA9A9) % 2**32
    if decay is not None:
        even = 23 if decay == 1 else min(max(math.floor(math.log2(0.1 / (1 - decay))), 3), 23)
        bits = bits ^ _lowbias32((step + name) % 2**32) // 2**even
    return np.array((bits // 2**9 + 0.5) / 2**23, np.float64).reshape(shape)


def _lowbias32(x):
    """A published hash of 32-bit numbers (Wellons, 2018)."""
    x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
    x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
    return x ^ x >> 16


# Parameters of 16 bits

EXPONENTS = {"bfloat16": (8, 7), "float16": (5, 10)}
"""How many bits of a number are its exponent, and its mantissa."""


def numbers_of_16_bits(dtype):
    """All finite numbers of a dtype, rising, float64; the next power of two stands for infinity."""
    exponent_bits, bits = EXPONENTS[dtype]
    exponent, mantissa = np.divmod(np.arange(2 ** (exponent_bits + bits) - 2**bits + 1), 2**bits)
    bias = 2 ** (exponent_bits - 1) - 1
    normal = exponent > 0
    size = (mantissa / 2**bits + normal) * 2.0 ** (np.maximum(exponent, 1) - bias)
    return np.concatenate([-size[:0:-1], size])


def beside(x, dtype):
    """The numbers of 16 bits on either side of finite float64 ones, `(low, high)`; equal on one."""
    table = numbers_of_16_bits(dtype)
    low = table[np.searchsorted(table, x, side="right") - 1]
    return low, table[np.searchsorted(table, x)]


def unit_of_residual(p, dtype):
    """What a residual counts at most beside numbers of 16 bits: a 256th of the gap above."""
    table = numbers_of_16_bits(dtype)
    at = np.minimum(np.searchsorted(table, np.abs(p)), table.size - 2)
    return (table[at + 1] - table[at]) / 256


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
