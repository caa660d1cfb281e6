"""Judges one step of one leaf by the kernels, beside the same step by XLA.

Stored codes are predicted in float64, from the step, the leaf and the number of the block, and may
be the neighbours of those only where a value lies beside the point at which rounding turns. Scales
are compared with XLA's. What the step returns is judged in float64, from the slots that the same
implementation stored. The bounds are those of `tests.kernels.step_judge`: `ULP` is half a float32
ulp, once per operation.
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.arithmetic.blocks import absmax_shape
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.dither import Dither, even_digits
from pallas_kernels.arithmetic.step import Spec
from tests import oracles
from tests.gpu import comparing_params
from tests.kernels.codec_judge import level_error
from tests.kernels.step_judge import OPERATIONS, ULP, float64

CUBE_TIE = 1e-3
"""`tiled.ladders._climb_cubes`: what share of a gap a kernel may be off from where rounding turns.
"""
EIGHTH_TIE = 1e-3
"""The same of `_climb_eighth_powers`, from rung 4 on."""
STEP, LEAF = 5, "leaf"
"""Of every case. Scalars are bias-corrected for that step."""
LARGE = 2**22
"""Elements from which on only every sixteenth block is predicted, and whatever differs."""
DIVISION = 1e-6
"""Relative, of `tiled.bodies._rough_direction`, of which a norm is made."""


def inputs(case):
    """`(g, p, slots, absmaxes, s, dither)` of a case, from a fixed seed, and a residual if any."""
    rng, shape = np.random.default_rng(0), case.shape
    size = math.prod(shape)
    g = rng.standard_normal(shape, np.float32) * 2.0**-6
    if size < 2**22:
        g *= rng.lognormal(size=shape).astype(np.float32)
    p = rng.standard_normal(shape, np.float32)
    if case.zeros:
        g[...], p[...] = 0, 0
    g.reshape(-1)[:3] = 0
    g.reshape(-1)[case.block : 2 * case.block] = 0  # a block that had no gradient
    at = [i for i in case.poison if i < size]
    g.reshape(-1)[at] = [case.poison[i] for i in at]
    slots, absmaxes = [], []
    for slot in case.rule.slots:
        if case.fresh:
            codes = np.zeros(shape, np.uint8)
        elif slot.signed:
            written = oracles.written(case.codec, True)
            codes = written[rng.integers(0, written.size, shape)]
        else:
            # A second moment is no billionth of its block, or one element would be all of the norm.
            codes = rng.integers(128, 256, shape, np.uint8)
        # Of the size that the moments of these gradients have.
        scale = 2.0**-7 if slot.signed else 2.0**-12
        absmax = rng.lognormal(size=absmax_shape(shape, case.block)) * scale * (not case.fresh)
        absmax.reshape(-1)[list(case.lost)] = np.nan
        slots.append(jnp.asarray(codes))
        absmaxes.append(jnp.asarray(absmax, jnp.float32))
    with np.errstate(over="ignore"):  # a huge gradient is an infinite one in float16
        g = jnp.asarray(g).astype(case.g)
    s = jax.tree.map(jnp.float32, case.scalars)
    p = jnp.asarray(p).astype(case.p) if case.has_params else None
    dither = Dither(jnp.uint32(STEP), jnp.uint32(zlib.crc32(LEAF.encode())))
    dither = dither.scrambled(even_digits(case.rule, s))
    if case.odd:
        p = comparing_params.with_odd_ones(p)
    residual = [comparing_params.residual_of(p)] if case.rounding == "compensated" else []
    return g, p, tuple(slots), tuple(absmaxes), s, dither, *residual


def spec(case):
    """The `Spec` of a case."""
    codecs = tuple(get_codec(case.codec, slot.signed) for slot in case.rule.slots)
    return Spec(
        case.rule,
        codecs,
        case.block,
        case.decay,
        case.emit,
        count_skipped=case.count_skipped,
        param_rounding=case.rounding,
    )


@np.errstate(over="ignore", invalid="ignore")
def judge(case, given, kernel, general):
    """Raises `AssertionError`, or returns what was seen: how far and how often they differ.

    Args:
      case: A `check_step.Case`.
      given: From `inputs`.
      kernel: What the kernels made of it, `tests.steps.Seen` or `SeenRounded`.
      general: What XLA did.
    """
    g, p, slots, absmaxes, s, _, *residual = given
    s = jax.tree.map(float, s)
    stored = p64 = None if p is None else float64(p)
    if residual:
        p64 = comparing_params.joined(p, *residual)
    gradient = float64(g)
    size = np.abs(gradient)
    if s.grad_scale is not None:
        gradient, size = s.grad_scale * gradient, s.grad_scale * size
    if case.decay == "coupled":
        gradient = gradient + s.weight_decay * p64
        size = size + np.abs(s.weight_decay * p64)
    usable = np.abs(gradient) <= case.rule.grad_limit
    gradient, size = np.where(usable, gradient, 0), np.where(usable, size, 0)

    def decoded(i, codes, absmax):
        signed = case.rule.slots[i].signed
        return oracles.decode(np.asarray(codes), np.asarray(absmax), case.block, case.codec, signed)

    old = [decoded(i, *x) for i, x in enumerate(zip(slots, absmaxes, strict=True))]
    seen = {}
    for i, (slot, value, error) in enumerate(_moments(case, s, gradient, size, usable, old)):
        seen |= _judge_slot(case, i, slot, value, error, kernel, general)
    lost, rounded = _lost(case, usable), []
    for name, step in (("kernel", kernel), ("XLA", general)):
        new = [decoded(i, *x) for i, x in enumerate(zip(step.slots, step.absmaxes, strict=True))]
        if case.rule.form == "sign":
            update, bound, free = _lion(case, s, gradient, size, usable, old[0], p64)
        else:
            # Norms do without the residual, unless the gradient has it.
            of_norm = p64 if case.decay == "coupled" else stored
            division = DIVISION * (name == "kernel")
            update, bound = _adam(case, s, usable, new, p64, of_norm, division)
            free = None
        if case.rounding == "nearest":
            seen |= _judge_out(case, name, step.out, g, p, p64, update, bound, free, lost)
        else:
            rounded.append(comparing_params.Made(name, step, update, bound, free))
        skipped = None if step.skipped is None else float(step.skipped)
        expected = float(np.sum(~usable)) if case.count_skipped else None
        assert skipped == expected, f"{name} counted {skipped} skipped elements, not {expected}"
    if rounded:
        seen |= comparing_params.judge(case, given, p64, usable, lost, rounded)
    return seen


def _lost(case, usable):
    """Where a result cannot be a number, because the scale of a block is none."""
    blocks = np.isin(oracles.block_of(usable.size, case.block), case.lost).reshape(usable.shape)
    # Without a norm the trust ratio is none, which nobody is to overlook.
    return np.full(usable.shape, bool(case.lost)) if case.rule.ratio else blocks & usable


def _moments(case, s, gradient, size, usable, old):
    """`(slot, new value, its error)` of each slot, before it is rounded to codes."""
    found, own = [], s.own

    def error(i, b, part):
        exact = level_error(case.codec, case.rule.slots[i].signed) + ULP
        return exact * b * np.abs(old[i]) + OPERATIONS * ULP * (part + b * np.abs(old[i]))

    def add(i, new, bound):
        # Where the gradient is not usable the old value is kept; both have the error of its level.
        found.append((case.rule.slots[i], np.where(usable, new, old[i]), bound))

    if case.rule.form == "sign":
        mu = own.one_minus_b2 * gradient + own.b2 * old[0]
        add(0, mu, error(0, own.b2, own.one_minus_b2 * size))
        return found
    mu = own.one_minus_b1 * gradient + own.b1 * old[0]
    add(0, mu, error(0, own.b1, own.one_minus_b1 * size))
    nu = own.one_minus_b2 * gradient**2 + own.b2 * old[1]
    nu_error = error(1, own.b2, own.one_minus_b2 * size**2)
    add(1, nu, nu_error)
    if len(old) == 3:
        largest = np.maximum(old[2], nu * own.debias2)
        kept = (level_error(case.codec, False) + ULP) * old[2]
        add(2, largest, np.maximum(kept, own.debias2 * nu_error + 2 * ULP * largest))
    return found


def _judge_slot(case, i, slot, value, error, kernel, general):
    codes, expected = (np.asarray(x.slots[i]) for x in (kernel, general))
    absmax, expected_absmax = (np.asarray(x.absmaxes[i]) for x in (kernel, general))
    assert codes.dtype == np.uint8 and absmax.dtype == np.float32
    assert codes.shape == expected.shape and absmax.shape == expected_absmax.shape
    lost = np.isin(np.arange(absmax.size), case.lost).reshape(absmax.shape)
    for name, scale in (("kernel", absmax), ("XLA", expected_absmax)):
        odd = np.isfinite(scale) == lost
        assert not odd.any(), f"{slot.name}_absmax of {name}: {scale[odd][:3]}"
    apart = np.where(lost, 0, np.abs(absmax.astype(np.float64) - expected_absmax))
    ulps = apart / np.spacing(np.maximum(expected_absmax, np.finfo(np.float32).tiny))
    # Both lie within the bound of the exact value.
    off = ~lost & (apart > 2 * oracles.block_absmax(error, case.block))
    assert not off.any(), (
        f"{slot.name}_absmax: {off.sum()} of {off.size} off by up to {ulps[off].max():.3g} ulp, "
        f"first at {np.argwhere(off)[0].tolist()}: {absmax[off][0]}, XLA {expected_absmax[off][0]}"
    )
    blocks = oracles.block_of(codes.size, case.block)
    judged = ~lost.reshape(-1)[blocks]
    differ = (codes != expected).reshape(-1) & judged
    if codes.size >= LARGE:
        judged &= differ | (blocks % 16 == 0)
    at, blocks = np.flatnonzero(judged), blocks[judged]
    seen = {
        f"{slot.name}_codes_that_differ": int(differ.sum()),
        f"{slot.name}_absmax_ulps": float(ulps[~lost].max(initial=0)),
    }
    u = 0.5
    if case.codec != "dynamic":
        # Digits of second moments are scrambled the most, whatever their decay.
        decay = 0.0 if slot.second_moment else case.rule.decays(case.scalars.own)[i]
        u = oracles.dither(STEP, LEAF, i, (absmax.size,), 1, decay)[blocks]
    value, error, codes, expected = (x.reshape(-1)[at] for x in (value, error, codes, expected))
    for name, stored, scale in (("kernel", codes, absmax), ("XLA", expected, expected_absmax)):
        scale = scale.reshape(-1)[blocks].astype(np.float64)
        scale = np.where(scale > 0, scale, np.inf)
        tie = _tie(case, slot) if name == "kernel" else 0.0
        wrong, worst = _mispredicted(case, slot, value / scale, error / scale, u, tie, stored)
        seen[f"{slot.name}_{name}_worst_tie"] = worst
        few = wrong[:3]
        assert not len(wrong), (
            f"{slot.name}: {len(wrong)} of {len(at)} codes of {name} wrong, first at flat "
            f"{at[few].tolist()}: y={(value / scale)[few]}, kernel {codes[few]}, "
            f"XLA {expected[few]}"
        )
    # To be beside a turn is rare: twice the width of a tie, where values are spread over the gaps.
    most = (4 * CUBE_TIE if case.codec == "power" else 4e-4) * differ.size
    assert differ.sum() <= 8 + most, f"{slot.name}: {differ.sum()} of {differ.size} codes differ"
    return seen


def _tie(case, slot):
    """What share of a gap kernels may be off from where rounding turns."""
    if case.codec != "power":
        return 0.0
    return CUBE_TIE if slot.signed else EIGHTH_TIE


def _mispredicted(case, slot, y, error, u, tie, codes):
    """Which codes are not those of `y`, known up to `error`; and how far a tie reached, in gaps."""
    arguments = case.codec, slot.signed
    expected, distance, gap = oracles.turned(y, u, *arguments, zero_rule=slot.second_moment)
    if case.codec == "dynamic" and slot.signed:  # its negative values are never stored as zero
        expected = np.where((y < 0) & (expected == 0), np.uint8(255), expected)
    # The level that was read, the quotient, and where rounding turns between two levels.
    slack = error + (level_error(*arguments) + 4 * ULP) * np.abs(y) + 4 * ULP * gap
    off = codes != expected
    places = (oracles.ranks(x, *arguments) for x in (codes, expected))
    beside = np.abs(np.subtract(*places)) == 1
    worst = np.max(distance[off] / gap[off], initial=0)
    return np.flatnonzero(off & ~(beside & (distance <= slack + tie * gap))), float(worst)


def _lion(case, s, gradient, size, usable, mu, p):
    own = s.own
    mixed = own.one_minus_b1 * gradient + own.b1 * mu
    bound = OPERATIONS * ULP * (own.one_minus_b1 * size + own.b1 * np.abs(mu))
    bound += level_error(case.codec, True) * own.b1 * np.abs(mu)
    # Where the mix of gradient and momentum is rounding error, its sign is free.
    free = (np.abs(mixed) <= bound) & (bound > 0) & usable
    decay = s.weight_decay * p if case.decay == "decoupled" else np.zeros_like(mixed)
    update = np.where(usable, s.step_size * (np.sign(mixed) + decay), 0)
    return update, 4 * ULP * abs(s.step_size) * (1 + np.abs(decay)), free


def _adam(case, s, usable, new, p, of_norm, division):
    """The update from new slots, and how far it may be off; LAMB's is that times its ratio."""
    own = s.own
    m, root = new[0], np.sqrt(new[-1] * (own.debias2 if len(new) == 2 else 1.0))
    adam = m * own.debias1 / (root + own.eps)
    decay = s.weight_decay * p if case.decay == "decoupled" else np.zeros_like(m)
    direction = np.where(usable, adam + decay, 0)
    magnitude = np.where(usable, np.abs(adam) + np.abs(decay), 0)
    relative = 2 * OPERATIONS * ULP
    relative += level_error(case.codec, True) + level_error(case.codec, False)
    if not case.rule.ratio:
        return s.step_size * direction, abs(s.step_size) * relative * magnitude
    relative += 2 * division
    of_residual = s.weight_decay * (p - of_norm) if case.decay == "decoupled" else 0.0
    p_norm = np.linalg.norm(of_norm)
    u_norm = np.linalg.norm(np.where(usable, direction - of_residual, 0))
    ratio = 1.0
    if p_norm > 0 and u_norm > 0:
        ratio = float(np.clip(s.ratio_scale * p_norm / u_norm, s.ratio_low, s.ratio_high))
    step = abs(s.step_size) * ratio
    # Both norms are sums by trees, of parts that are added up by trees.
    norms = 4 * ULP * (2 + math.log2(max(p.size, 2)))
    bound = step * (relative * magnitude + (2 * norms + relative) * np.abs(direction))
    return s.step_size * ratio * direction, bound


def _judge_out(case, name, out, g, p, p64, update, bound, free, lost):
    """The result is the update, or the parameter with it, rounded once; NaN where it is `lost`."""
    to_params = case.emit == "params"
    with jax.numpy_dtype_promotion("standard"):
        dtype = p.dtype if to_params else jnp.result_type(g.dtype, g.dtype if p is None else p)
    assert out.dtype == dtype, f"{name} returned {out.dtype}, not {dtype}"
    seen = float64(out)
    expected = p64 + update if to_params else update
    info = jnp.finfo(dtype)
    bound = bound + float(info.eps) / 2 * np.abs(expected) + float(info.smallest_subnormal) / 2
    if to_params:
        bound = bound + 2 * ULP * (np.abs(p64) + np.abs(expected))
    # Just beyond a bound is within it: rounding may go either way at the middle.
    error = np.abs(seen - expected) / (bound * (1 + 1e-6))
    error = np.where(lost, np.where(np.isnan(seen), 0, np.inf), error)
    if free is not None and free.any():
        step = np.abs(seen - expected)
        error = np.where(free & (step <= 2.001 * np.abs(case.scalars.step_size) + bound), 0, error)
    off = ~(error <= 1)
    assert not off.any(), (
        f"{name} returned {off.sum()} of {off.size} wrong {case.emit}, first at "
        f"{np.argwhere(off)[0].tolist()}: {seen[off][:3]}, expected {expected[off][:3]} within "
        f"{bound[off][:3]}"
    )
    worst = float(error.max(initial=0))
    return (
        {f"{name}_result_worst": worst, f"{name}_free_signs": int(np.sum(free))}
        if (free is not None)
        else {f"{name}_result_worst": worst}
    )
