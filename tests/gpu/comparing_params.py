"""Judges parameters of 16 bits that are rounded stochastically, or that have a residual.

Of the exact result, in float64, a parameter has to be one of the two neighbours, and with its
residual to be as near as that can tell. Kernels and XLA draw the same numbers, so they differ only
where what they round differs: nowhere where both make the same single addition, and else about as
often as the difference is a part of the distance of two neighbours.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tests.kernels.step_judge import ULP, float64

ODD = {11: np.nan, 300: np.inf, 301: -np.inf, 17: 0.0, 19: -0.0, 700: 1.0, 1030: -0.5, 4100: np.nan}
"""Parameters that are no numbers, or zeros, or next to numbers with another unit."""
LARGEST = 23, 1500
"""Where the largest number is, with either sign."""


class Made(NamedTuple):
    """What an implementation made of a leaf, and what was expected of it."""

    name: str
    seen: Any
    """`tests.steps.SeenRounded`."""
    update: Any
    bound: Any
    """How far the update may be off."""
    free: Any
    """Where the sign of a step is free; or None."""


def with_odd_ones(p):
    """Parameters, some of which are `ODD`."""
    largest = float(jnp.finfo(p.dtype).max)
    odd = ODD | dict(zip(LARGEST, (largest, -largest), strict=True))
    at = [i for i in odd if i < p.size]
    flat = p.reshape(-1).at[np.array(at)].set(jnp.array([odd[i] for i in at]).astype(p.dtype))
    return flat.reshape(p.shape)


def residual_of(p):
    """Any that these parameters could have, also beside zeros."""
    numbers = np.random.default_rng(2).integers(-128, 128, p.shape)
    return jnp.asarray(np.where(np.isinf(float64(p)), 0, numbers), jnp.int8)


def joined(p, residual):
    """What a parameter and its residual stand for, in float64."""
    x, r = float64(p), np.asarray(residual, np.float64)
    unit = unit_of(x, p.dtype)
    if p.dtype == jnp.float16:
        return x + r * unit / 256
    # Of bfloat16 bits are counted, away from zero; those below a power of two are half as large.
    toward_zero = (r < 0) & (unit_of(np.nextafter(np.abs(x), 0), p.dtype) < unit)
    size = np.abs(x) + r * np.where(toward_zero, unit / 2, unit) / 256
    return np.where((x == 0) | np.isinf(x), x, np.copysign(size, x))


def unit_of(x, dtype):
    """The distance between neighbours of a dtype around float64 numbers."""
    info = jnp.finfo(dtype)
    x = np.clip(np.abs(x), float(info.smallest_normal), float(info.max))
    return np.ldexp(1.0, np.frexp(x)[1] - 1 - info.nmant)


def _neighbour(x, dtype, toward):
    """The nearest number of a dtype that is not beyond: `toward` is `np.floor` or `np.ceil`."""
    with np.errstate(invalid="ignore"):
        unit = unit_of(x, dtype)
        found = toward(x / unit) * unit
    found = np.where(np.abs(found) > float(jnp.finfo(dtype).max), np.copysign(np.inf, x), found)
    return np.where(np.isinf(x), x, found)


def judge(case, given, p64, usable, lost, both):
    """Raises `AssertionError`, or returns what was seen. `both` are `Made`, by kernels and XLA."""
    dtype = given[1].dtype
    lost = lost | np.isnan(p64)
    seen, rounded = {}, []
    for made in both:
        assert made.seen.out.dtype == dtype, f"{made.name} returned {made.seen.out.dtype}"
        expected = np.where(usable, p64 + made.update, p64)
        bound = np.where(usable, made.bound + 2 * ULP * (np.abs(p64) + np.abs(expected)), 0)
        if made.free is not None:
            bound = bound + np.where(made.free, 2.001 * np.abs(case.scalars.step_size), 0)
        bound = np.where(np.isfinite(bound), bound, 0)
        rounded.append(_judge_one(case, made, given, expected, bound, usable, lost))
        seen[f"{made.name}_differs_from_nearest"] = int(
            np.sum(np.asarray(made.seen.out) != np.asarray(expected).astype(dtype))
        )
    return seen | _judge_pair(case, both, rounded, lost, dtype)


def _judge_one(case, made, given, expected, bound, usable, lost):
    """`(kept, expected, bound)`: what is kept of the parameter, and of what it is to be."""
    p, out, dtype = float64(given[1]), float64(made.seen.out), given[1].dtype

    def all_are(right, what):
        wrong = ~(right | lost)
        assert not wrong.any(), (
            f"{made.name}: {wrong.sum()} of {wrong.size} {what}, first at "
            f"{np.argwhere(wrong)[0].tolist()}: {out[wrong][:3]}, expected {expected[wrong][:3]} "
            f"within {bound[wrong][:3]}"
        )

    odd = np.isnan(out) != lost
    assert not odd.any(), f"{made.name}: {odd.sum()} are NaN or not, first {np.argwhere(odd)[:1]}"
    below = _neighbour(expected - bound, dtype, np.floor)
    above = _neighbour(expected + bound, dtype, np.ceil)
    all_are((below <= out) & (out <= above), "are no neighbours")
    if case.rounding == "stochastic":
        all_are(usable | (out == p), "should have been left alone")
        return out, expected, bound
    residual = np.asarray(made.seen.residual)
    assert residual.dtype == np.int8 and residual.shape == out.shape
    kept, finite = joined(made.seen.out, residual), np.isfinite(expected) & np.isfinite(out)
    unit = unit_of(np.maximum(np.abs(expected), np.abs(out)), dtype)
    # The dither decides between the residual below and the one above.
    with np.errstate(invalid="ignore"):
        off = np.abs(kept - expected) - bound
        all_are(~finite | (off <= unit / 256 * (1 + 1e-6)), "are off with their residual")
        all_are(~finite | (np.abs(kept - out) <= unit / 2), "are not the nearest")
    all_are(usable | (kept == expected), "should have been left alone")
    if dtype == jnp.bfloat16:  # what float16 has beside a power of two can be said in two ways
        alone = ~usable & (p != 0)
        all_are(~alone | (residual == np.asarray(given[-1])), "have another residual")
    return kept, expected, bound


def _judge_pair(case, both, rounded, lost, dtype):
    """How often two implementations differ."""
    one, other = both
    free = lost if one.free is None else lost | one.free | other.free
    (kept, expected, bound), (other_kept, other_expected, other_bound) = rounded
    residuals = np.zeros(kept.shape, bool)
    if case.rounding == "compensated":
        residuals = np.asarray(one.seen.residual) != np.asarray(other.seen.residual)
    differ = ((kept != other_kept) | (residuals & (kept != 0))) & ~free
    if case.rule.form == "sign" and case.decay is None:
        most = 0.0  # both add the same number to the same number
    else:
        step = unit_of(expected, dtype) / (1 if case.rounding == "stochastic" else 256)
        with np.errstate(invalid="ignore"):
            apart = (np.abs(expected - other_expected) + bound + other_bound) / step
        chance = float(np.sum(np.minimum(np.where(np.isfinite(apart), apart, 1), 1)[~free]))
        # As many as there may be, and four standard deviations.
        most = chance + 4 * chance**0.5 + 4
    assert differ.sum() <= most, f"{differ.sum()} of {differ.size} differ, at most {most:.1f}"
    return {"rounded_otherwise": int(differ.sum()), "at_most": most}
