"""Judges one observed optimizer step, leaf by leaf, against the float64 oracles.

Rounding to 8 bits is judged on the stored codes: where the dither of step, leaf and block turns
them (or to the nearest level, with bitsandbytes' map), but for values beside a turn. The update is
then computed from the stored codes. All bounds are formulas: `ULP` is half a float32 ulp (2**-24),
counted once per float32 operation.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from tests import oracles
from tests.kernels.codec_judge import level_error

ULP = 2.0**-24
# Float32 operations on the way from gradient and decoded slots to a new slot, at most: a scale
# and L2 decay on the gradient, twice in its square, the weights of the average, the sum.
OPERATIONS = 8


@dataclasses.dataclass(frozen=True)
class Hyper:
    """What a step was asked to do, as numbers: schedules already evaluated."""

    learning_rate: float
    b1: float
    b2: float
    weight_decay: float = 0.0
    eps: float = 0.0
    bias_correction: bool = True
    amsgrad: bool = False
    adam_w_mode: bool = True
    ratio: bool = True
    """Whether a trust ratio scales the step."""
    max_unorm: float | None = None
    trust_clip: tuple[float, float] | None = None
    percentile: int | None = None
    block_size: int | None = 256
    codec: str = "power"
    tie: float = 0.0
    """What share of a gap a value may be from where rounding turns, and be rounded either way."""
    operation: float = 0.0
    """Relative error that an implementation adds to a direction beyond rounding."""


@dataclasses.dataclass(frozen=True)
class Observed:
    """One step of one leaf: state fields before and after by name, and what went in and out."""

    t: int  # the step's number, from 1
    leaf: str  # its name
    g: Any
    p: Any
    update: Any
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    scale: float = 1.0
    """What the gradient is multiplied by, before percentile clipping."""
    scale_error: float = 0.0
    """The relative error of that in float32."""
    fused: bool = False
    """Whether the update is none, but the parameter that it leads to."""


def find_state(state):
    """The optimizer's own state inside whatever `chain` made of it."""

    def is_own(node):
        return hasattr(node, "mu_absmax")

    (own,) = filter(is_own, jax.tree.leaves(state, is_leaf=is_own))
    return own


def float64(x):
    return np.asarray(jax.numpy.asarray(x).astype(jax.numpy.float32), np.float64)


def read(fields, slot, hyper, signed):
    """A slot in float64, whether it is stored as codes or as float32."""
    stored = fields[slot]
    if stored.dtype == np.uint8:
        absmax = fields[f"{slot}_absmax"]
        return oracles.decode(stored, absmax, hyper.block_size, hyper.codec, signed)
    assert stored.dtype == np.float32
    return stored.astype(np.float64)


def read_error(fields, slot, hyper, signed):
    """Relative error of `read` done in float32: the level's, and the product with the scale."""
    coded = fields[slot].dtype == np.uint8
    return level_error(hyper.codec, signed) + ULP if coded else 0.0


def complement_error(b):
    """How far `1 - b` is off if float32 forms it; 0 for a dyadic `b`."""
    return abs((1 - float(np.float32(b))) - (1 - b))


def correction_error(b, t):
    """Relative error of `1 - b**t` in float32: the power is within 4 ulp and cancels."""
    return (4 * ULP + t * complement_error(b)) / (1 - b**t) + ULP


def assert_within(seen, expected, bound, what):
    off = ~(np.abs(seen - expected) <= bound)
    worst = np.argwhere(off)[:3].tolist()
    assert not off.any(), (
        f"{what}: {off.sum()} of {off.size} off, first at {worst}: saw {seen[off][:3]}, "
        f"expected {expected[off][:3]} within {np.broadcast_to(bound, off.shape)[off][:3]}"
    )


SLOTS = ("mu", "nu", "nu_max")


def check_slot(observed, slot, value, error, hyper):
    """The slot stores `value`, known up to `error`, as well as its type allows."""
    fields, signed = observed.after, slot == "mu"
    stored, absmax = fields[slot], fields.get(f"{slot}_absmax")
    if stored.dtype == np.float32:
        assert absmax is None or absmax.tolist() == [0]  # unused
        assert_within(stored, value, error, slot)
        return
    assert absmax.dtype == np.float32
    largest = oracles.block_absmax(value, hyper.block_size)
    assert absmax.shape == largest.shape
    assert_within(absmax, largest, oracles.block_absmax(error, hyper.block_size), f"{slot}_absmax")
    y = oracles.normalize(value, absmax, hyper.block_size)
    # The quotient is rounded once more, and the level has its own error.
    slack = oracles.normalize(error, absmax, hyper.block_size)
    slack += (level_error(hyper.codec, signed) + 2 * ULP) * np.abs(y)
    u = 0.5
    if hyper.codec != "dynamic":
        number = SLOTS.index(slot)
        # Lion's only average has the decay b2. Digits of second moments are scrambled the most.
        decay = 0.0 if number else hyper.b1 if "nu" in fields else hyper.b2
        u = oracles.dither(observed.t, observed.leaf, number, y.shape, hyper.block_size, decay)
    expected, distance, gap = oracles.turned(y, u, hyper.codec, signed, zero_rule=not signed)
    if hyper.codec == "dynamic" and signed:  # its negative values are never stored as zero
        expected = np.where((y < 0) & (expected == 0), np.uint8(255), expected)
    # At a turn rounding errors decide between two codes that are side by side.
    at_turn = distance <= slack + hyper.tie * gap
    places = (oracles.ranks(codes, hyper.codec, signed) for codes in (stored, expected))
    beside = np.abs(np.subtract(*places)) == 1
    ok = (stored == expected) | (at_turn & beside)
    assert ok.all(), (slot, np.argwhere(~ok)[:3], y[~ok][:3], stored[~ok][:3])


def check_update(observed, candidates, bounds, allowed):
    """The update is one of the candidates, rounded once to its dtype; or what it leads to is."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jax.numpy.promote_types(observed.p.dtype, observed.g.dtype)
    dtype = observed.p.dtype if observed.fused else dtype
    assert observed.update.dtype == dtype
    info = jax.numpy.finfo(dtype)
    seen = float64(observed.update)
    ok = np.zeros(seen.shape, bool)
    for candidate, bound, may in zip(candidates, bounds, allowed, strict=True):
        if observed.fused:  # the sum is one operation more
            candidate = float64(observed.p) + candidate
            bound = bound + ULP * np.abs(candidate)
        rounding = float(info.eps) / 2 * np.abs(candidate) + float(info.smallest_subnormal) / 2
        ok |= may & (np.abs(seen - candidate) <= bound + rounding)
    first = tuple(np.argwhere(~ok)[:1].ravel().tolist())
    assert ok.all(), f"{(~ok).sum()} updates off, first at {first}: saw {seen[~ok][:3]}, " + (
        f"expected one of {[c[~ok][:3] for c in candidates]}"
    )


def _gradient_scale(observed, hyper):
    """The factor on the gradient and its relative error, after a look at the ring of norms."""
    if hyper.percentile is None:
        assert observed.after.get("gnorm_history") is None
        return observed.scale, observed.scale_error
    before = observed.before["gnorm_history"]
    history, scale = oracles.percentile_scale(
        before, observed.scale * float64(observed.g), observed.t, hyper.percentile
    )
    error = sum_error(observed.g.size) + observed.scale_error
    assert_within(observed.after["gnorm_history"], history, 2 * error * history, "gnorm_history")
    return observed.scale * scale, error + observed.scale_error


def sum_error(size):
    """Relative error of a norm in float32: roundings of a long sum are a random walk."""
    return 4 * ULP * (2 + math.sqrt(size))


def judge_lion(observed, hyper):
    """Checks one step of Lion on one leaf."""
    g, p = float64(observed.g), float64(observed.p)
    mu = read(observed.before, "mu", hyper, True)
    scale, scale_error = _gradient_scale(observed, hyper)
    step = oracles.lion_step(
        g, mu, p, learning_rate=hyper.learning_rate, b1=hyper.b1, b2=hyper.b2,
        weight_decay=hyper.weight_decay, grad_scale=scale,
    )  # fmt: skip

    mu_error = read_error(observed.before, "mu", hyper, True) * abs(mu)
    size = np.where(step.skipped, 0, abs(scale * g))

    def error(b):
        bound = mu_error + OPERATIONS * ULP * ((1 - b) * size + b * abs(mu))
        return bound + complement_error(b) * (size + abs(mu)) + scale_error * (1 - b) * size

    check_slot(observed, "mu", step.mu, error(hyper.b2), hyper)
    # Where the mix of gradient and momentum is rounding error, its sign is free.
    free = (np.abs(step.mixed) <= error(hyper.b1)) & (error(hyper.b1) > 0) & ~step.skipped
    assert free.mean() < 0.001
    decay = hyper.weight_decay * p
    candidates, bounds, allowed = [], [], []
    for sign in (-1, 0, 1):
        whole = np.where(step.skipped, 0, hyper.learning_rate * (sign + decay))
        candidates.append(-whole)
        bounds.append(4 * ULP * hyper.learning_rate * (abs(sign) + abs(decay)))
        allowed.append(free | (step.direction == sign))
    assert (step.update == np.choose(step.direction.astype(int) + 1, candidates)).all()
    check_update(observed, candidates, bounds, allowed)


def judge_adam(observed, hyper):
    """Checks one step of AdamW, or LAMB, on one leaf."""
    g, p, t = float64(observed.g), float64(observed.p), observed.t
    mu, nu = read(observed.before, "mu", hyper, True), read(observed.before, "nu", hyper, False)
    scale, scale_error = _gradient_scale(observed, hyper)
    l2_decay = 0.0 if hyper.adam_w_mode else hyper.weight_decay
    new = oracles.lamb_moments(
        g, mu, nu, p, b1=hyper.b1, b2=hyper.b2, l2_decay=l2_decay, grad_scale=scale
    )
    # The size of the gradient, before anything cancels.
    size = np.where(new.skipped, 0, abs(scale * g) + abs(l2_decay * p))

    def error(slot, signed, b, gradient, old):
        bound = read_error(observed.before, slot, hyper, signed) * old
        bound += OPERATIONS * ULP * ((1 - b) * gradient + b * old)
        return bound + complement_error(b) * (gradient + old) + 2 * scale_error * (1 - b) * gradient

    mu_error = error("mu", True, hyper.b1, size, abs(mu))
    nu_error = error("nu", False, hyper.b2, size**2, nu)
    check_slot(observed, "mu", new.mu, mu_error, hyper)
    check_slot(observed, "nu", new.nu, nu_error, hyper)

    # From here on the stored moments are the moments.
    mu_hat = oracles.bias_corrected(
        read(observed.after, "mu", hyper, True), hyper.b1, t, hyper.bias_correction
    )
    root = oracles.bias_corrected(
        read(observed.after, "nu", hyper, False), hyper.b2, t, hyper.bias_correction
    )
    corrections = [correction_error(b, t) * hyper.bias_correction for b in (hyper.b1, hyper.b2)]
    relative = sum(corrections) + OPERATIONS * ULP + hyper.operation
    relative += read_error(observed.after, "mu", hyper, True)
    relative += read_error(observed.after, "nu", hyper, False)
    if hyper.amsgrad:
        # The maximum is taken before the second moment is rounded, and rounded itself.
        exact = oracles.bias_corrected(new.nu, hyper.b2, t, hyper.bias_correction)
        root = np.maximum(read(observed.before, "nu_max", hyper, False), exact)
        root_error = oracles.bias_corrected(nu_error, hyper.b2, t, hyper.bias_correction)
        root_error += relative * root
        check_slot(observed, "nu_max", root, root_error, hyper)
        root = read(observed.after, "nu_max", hyper, False)
    expected = oracles.lamb_update(
        mu_hat, root, p, new.skipped, learning_rate=hyper.learning_rate, eps=hyper.eps,
        weight_decay=hyper.weight_decay if hyper.adam_w_mode else 0.0,
        max_unorm=hyper.max_unorm, trust_clip=hyper.trust_clip if hyper.ratio else (1.0, 1.0),
    )  # fmt: skip
    step_size = hyper.learning_rate * expected.ratio
    bound = step_size * (relative * expected.magnitude)
    norms = 2 * sum_error(p.size) if hyper.ratio else 0.0
    bound += (norms + relative) * step_size * abs(expected.direction)
    check_update(observed, [expected.update], [bound], [np.True_])
