"""Judges one step of one leaf by the kernels, beside the same step by XLA.

Stored slots are compared with XLA's, and every difference has to have a reason: nearest codes may
differ at a tie, stochastic ones where the value lies within rounding of the random turn. What the
step returns is judged in float64, from the slots that the same implementation stored. The bounds
are those of `tests.kernels.step_judge`: `ULP` is half a float32 ulp, once per operation.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import rules
from pallas_kernels.blocks import absmax_shape
from pallas_kernels.codecs import get_codec
from pallas_kernels.hashing import mix, uniform
from pallas_kernels.step import Spec
from tests import oracles
from tests.kernels.codec_judge import level_error
from tests.kernels.step_judge import OPERATIONS, ULP, float64

CUBE_TIE = 1e-3
"""`kernel_ladders._cube_position`: two distances that differ by less of the gap are a tie."""
DIVISION = 1e-6
"""Relative, of `mosaic_bodies._divide_roughly`, which a norm is made with."""


def inputs(case):
    """`(g, p, slots, absmaxes, s, key)` of a case, from a fixed seed."""
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
            codes = np.full(shape, oracles.zero_code(case.codec, slot.signed), np.uint8)
        else:
            # A second moment is no billionth of its block, or one element would be all of the norm.
            low = oracles.lowest_code(case.codec, True) if slot.signed else 128
            codes = rng.integers(low, 256, shape, np.uint8)
        # Of the size that the moments of these gradients have.
        scale = 2.0**-7 if slot.signed else 2.0**-12
        absmax = rng.lognormal(size=absmax_shape(shape, case.block)) * scale * (not case.fresh)
        slots.append(jnp.asarray(codes))
        absmaxes.append(jnp.asarray(absmax, jnp.float32))
    with np.errstate(over="ignore"):  # a huge gradient is an infinite one in float16
        g = jnp.asarray(g).astype(case.g)
    s = case.scalars
    s = rules.Scalars(*(None if x is None else jnp.float32(x) for x in s))
    p = jnp.asarray(p).astype(case.p) if case.has_params else None
    return g, p, tuple(slots), tuple(absmaxes), s, jnp.uint32(0x1234567)


def spec(case):
    """The `Spec` of a case."""
    codecs = tuple(get_codec(case.codec, slot.signed) for slot in case.rule.slots)
    return Spec(case.rule, codecs, case.block, case.decay, case.emit)


@np.errstate(over="ignore", invalid="ignore")
def judge(case, given, kernel, general):
    """Raises `AssertionError`, or returns what was seen: how far and how often they differ.

    Args:
      case: A `check_step.Case`.
      given: From `inputs`.
      kernel: What the kernels made of it, `(out, slots, absmaxes)`.
      general: What XLA did.
    """
    g, p, slots, absmaxes, s, key = given
    s = rules.Scalars(*(None if x is None else float(x) for x in s))
    p64 = None if p is None else float64(p)
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
        seen |= _judge_slot(case, i, slot, value, error, key, kernel, general)
    for name, (out, new_slots, new_absmaxes) in (("kernel", kernel), ("XLA", general)):
        new = [decoded(i, *x) for i, x in enumerate(zip(new_slots, new_absmaxes, strict=True))]
        if case.rule.from_old:
            update, bound, free = _lion(case, s, gradient, size, usable, old[0], p64)
        else:
            update, bound = _lamb(case, s, usable, new, p64, DIVISION * (name == "kernel"))
            free = None
        seen |= _judge_out(case, name, out, g, p, p64, update, bound, free)
    return seen


def _moments(case, s, gradient, size, usable, old):
    """`(slot, new value, its error)` of each slot, before it is rounded to codes."""
    found = []

    def error(i, b, part):
        exact = level_error(case.codec, case.rule.slots[i].signed) + ULP
        return exact * b * np.abs(old[i]) + OPERATIONS * ULP * (part + b * np.abs(old[i]))

    def add(i, new, bound):
        # Where the gradient is not usable the old value is kept; both have the error of its level.
        found.append((case.rule.slots[i], np.where(usable, new, old[i]), bound))

    if case.rule.from_old:
        add(0, s.one_minus_b2 * gradient + s.b2 * old[0], error(0, s.b2, s.one_minus_b2 * size))
        return found
    add(0, s.one_minus_b1 * gradient + s.b1 * old[0], error(0, s.b1, s.one_minus_b1 * size))
    nu = s.one_minus_b2 * gradient**2 + s.b2 * old[1]
    nu_error = error(1, s.b2, s.one_minus_b2 * size**2)
    add(1, nu, nu_error)
    if len(old) == 3:
        largest = np.maximum(old[2], nu * s.debias2)
        kept = (level_error(case.codec, False) + ULP) * old[2]
        add(2, largest, np.maximum(kept, s.debias2 * nu_error + 2 * ULP * largest))
    return found


def _judge_slot(case, i, slot, value, error, key, kernel, general):
    codes, expected = (np.asarray(x[1][i]) for x in (kernel, general))
    absmax, expected_absmax = (np.asarray(x[2][i]) for x in (kernel, general))
    assert codes.dtype == np.uint8 and absmax.dtype == np.float32
    assert codes.shape == expected.shape and absmax.shape == expected_absmax.shape
    largest = oracles.block_absmax(error, case.block)
    assert np.isfinite(absmax).all(), f"{slot.name}_absmax is not finite"
    apart = np.abs(absmax.astype(np.float64) - expected_absmax)
    ulps = apart / np.spacing(np.maximum(expected_absmax, np.finfo(np.float32).tiny))
    # Both lie within the bound of the exact value.
    off = apart > 2 * largest
    assert not off.any(), (
        f"{slot.name}_absmax: {off.sum()} of {off.size} off by up to {ulps.max():.3g} ulp, first "
        f"at {np.argwhere(off)[0].tolist()}: {absmax[off][0]} and XLA {expected_absmax[off][0]}"
    )
    differ = codes != expected
    seen = {
        f"{slot.name}_codes_that_differ": int(differ.sum()),
        f"{slot.name}_absmax_ulps": float(ulps.max(initial=0)),
    }
    if not differ.any():
        return seen
    at = np.flatnonzero(differ)
    block = at // case.block
    for name, other in (("kernel", (codes, absmax)), ("XLA", (expected, expected_absmax))):
        mine, scale = other[0].reshape(-1)[at], other[1].reshape(-1)[block].astype(np.float64)
        scale = np.where(scale > 0, scale, np.inf)
        y = value.reshape(-1)[at] / scale
        slack = error.reshape(-1)[at] / scale
        slack += (level_error(case.codec, slot.signed) + 4 * ULP) * np.abs(y)
        if slot.second_moment:
            height = _heights(key, i, codes.shape)[at]
            ok, worst = _near_turn(case, y, mine, height, slack)
        else:
            tie = CUBE_TIE * (name == "kernel" and case.codec == "power")
            excess, gap = oracles.nearest_excess(y, mine, case.codec, slot.signed)
            ok = excess <= 2 * slack + tie * gap
            worst = float(np.max(excess / np.where(gap > 0, gap, np.inf)))
        seen[f"{slot.name}_{name}_worst_tie"] = worst
        assert ok.all(), (
            f"{slot.name}: {(~ok).sum()} codes of {name} that differ ({differ.sum()} of "
            f"{codes.size}) are no tie, first at flat {at[~ok][:3].tolist()}: y={y[~ok][:3]}, "
            f"kernel {codes.reshape(-1)[at][~ok][:3]}, XLA {expected.reshape(-1)[at][~ok][:3]}, "
            f"worst {worst:.3g} of a gap"
        )
    # A tie is rare: twice its width, where values are spread over the gaps.
    most = (4 * CUBE_TIE if case.codec == "power" and not slot.second_moment else 4e-4) * codes.size
    assert differ.sum() <= 8 + most, f"{slot.name}: {differ.sum()} of {codes.size} codes differ"
    return seen


def _heights(key, i, shape):
    return np.asarray(jax.jit(uniform, static_argnums=1)(mix(key + jnp.uint32(i)), shape)).ravel()


def _near_turn(case, y, codes, height, slack):
    """Where stochastic rounding may go either way, and how far the others are from that."""
    table = oracles.levels(case.codec, False)
    low = np.clip(np.searchsorted(table, y, side="right") - 1, 0, 254)
    gap = table[low + 1] - table[low]
    turn = table[low] + (height.astype(np.float64) - 1) * gap
    # What decides is whether the value or the turn moves across the other, or across a level.
    near = np.minimum.reduce([np.abs(y - x) for x in (turn, table[low], table[low + 1])])
    reach = 2 * slack + 4 * ULP * table[low + 1]
    ok = (near <= reach) & oracles.admissible(y, codes, case.codec, False, reach, zero_rule=True)
    return ok, float(np.max(near / gap))


def _lion(case, s, gradient, size, usable, mu, p):
    mixed = s.one_minus_b1 * gradient + s.b1 * mu
    bound = OPERATIONS * ULP * (s.one_minus_b1 * size + s.b1 * np.abs(mu))
    bound += level_error(case.codec, True) * s.b1 * np.abs(mu)
    # Where the mix of gradient and momentum is rounding error, its sign is free.
    free = (np.abs(mixed) <= bound) & (bound > 0) & usable
    decay = s.weight_decay * p if case.decay == "decoupled" else np.zeros_like(mixed)
    update = np.where(usable, s.step_size * (np.sign(mixed) + decay), 0)
    return update, 4 * ULP * abs(s.step_size) * (1 + np.abs(decay)), free


def _lamb(case, s, usable, new, p, division):
    m, root = new[0], np.sqrt(new[-1] * (s.debias2 if len(new) == 2 else 1.0))
    adam = m * s.debias1 / (root + s.eps)
    decay = s.weight_decay * p if case.decay == "decoupled" else np.zeros_like(m)
    direction = np.where(usable, adam + decay, 0)
    magnitude = np.where(usable, np.abs(adam) + np.abs(decay), 0)
    p_norm, u_norm = np.linalg.norm(p), np.linalg.norm(direction)
    ratio = 1.0
    if p_norm > 0 and u_norm > 0:
        ratio = float(np.clip(s.ratio_scale * p_norm / u_norm, s.ratio_low, s.ratio_high))
    step = abs(s.step_size) * ratio
    relative = 2 * OPERATIONS * ULP + 2 * division
    relative += level_error(case.codec, True) + level_error(case.codec, False)
    # Both norms are sums by trees, of parts that are added up by trees.
    norms = 4 * ULP * (2 + math.log2(max(p.size, 2)))
    bound = step * (relative * magnitude + (2 * norms + relative) * np.abs(direction))
    return s.step_size * ratio * direction, bound


def _judge_out(case, name, out, g, p, p64, update, bound, free):
    """The result is the update, or the parameter with it, rounded once."""
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
