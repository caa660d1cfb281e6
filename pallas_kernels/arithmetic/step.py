"""One step of one leaf, on decoded values: what the implementations share.

An implementation reads and writes memory. Everything between, on values of any shape, stands here
and in `rules` and `codecs`, so that XLA and a GPU kernel cannot come to differ.

- `gradient`: what the moments see of the gradient; `usable` says which of its elements they can
  take, `harmless` up to which size of the first moments that need not be asked.
- `moments`: the new slots. `prepared`: what encoding wants to know of their blocks.
- `direction`: what a step is made from, old or new slots, and `update` the step itself; `signs` is
  what a step of signs can be kept as until then.

Slots are `leaf.StoredSlot`, in memory or in registers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic import params
from pallas_kernels.arithmetic.blocks import spread
from pallas_kernels.arithmetic.codecs import (
    Codec,
    decode,
    decode_raw,
    decode_raw_root,
)
from pallas_kernels.arithmetic.ladders import NEAREST
from pallas_kernels.arithmetic.pieces import can_be_cut, squares, squares_of_rows
from pallas_kernels.arithmetic.rules import Rule
from pallas_kernels.arithmetic.shards import is_divided

SKIP, LOST = -128, -127
"""Among signs stored as int8: leave this element alone; and its momentum is not a finite number."""


class Spec(NamedTuple):
    """The static choices of a step."""

    rule: Rule
    codecs: tuple[Codec, ...]
    block_size: int | None
    decay: str | None
    """Weight decay: "decoupled" (added to the direction), "coupled" (to the gradient: L2), None."""
    emit: str = "updates"
    """What a step returns: "updates" to be added to the parameters, or the new "params"."""
    implementation: str | None = None
    """The code that makes it, by name (see `dispatch`); None for the fastest."""
    per_thread: int | None = None
    """Elements that a thread of a kernel holds; None for what suits the rule."""
    stacked: bool = False
    """Whether a leaf is a stack of layers along its first axis, each with norms of its own. Scalars
    that depend on a norm are then vectors with a value for every layer."""
    late: bool = False
    """Whether a step is traced when XLA divides the program, which JAX has lowered before."""
    absmax_axes: tuple[str, ...] = ()
    """Mesh axes over which a block is divided, without `block_size`: its shards share a scale."""
    count_skipped: bool = False
    """Whether a step says how many elements it left alone."""
    param_rounding: str = "nearest"
    """How parameters that a step returns are rounded: one of `params.ROUNDINGS`, and "nearest" if
    they do not have 16 bits."""
    update_dtype: Any = None
    """The dtype of updates is one that this and those of gradient and parameter promote to."""


def gradient(spec, g, p, s):
    """The gradient as the moments see it."""
    if s.grad_scale is not None:
        g = by_layer(s.grad_scale, g) * g
    if spec.decay == "coupled":
        g = g + s.weight_decay * p
    return g


def usable(spec, g):
    """Which elements of a gradient the moments can take."""
    return jnp.abs(g) <= spec.rule.grad_limit


def harmless(spec, s):
    """If old and new first moments are not larger, they are numbers and all elements are usable.

    The new one is that of all elements, whether they are usable or not.
    """
    return spec.rule.gradient_share(s.own) * (0.5 * spec.rule.grad_limit)


def moments(spec, g, usable, old, s):
    """The new slots; the old values where an element is not usable. None: all of them are.

    `old(factors)` are the old slots as values, times numbers, or exactly as they are if it is None.
    """
    new = spec.rule.moments(g, old(spec.rule.decays(s.own)), s.own)
    if usable is None:
        return new
    return tuple(jnp.where(usable, n, o) for n, o in zip(new, old(None), strict=True))


# ------------------------------------------------------------------------------------- the step


def direction(spec, g, values, s, divide=jnp.divide):
    """What the step is made from, of the slots that the rule reads."""
    return spec.rule.direction(g, values, s.own, divide)


def signs(direction, usable):
    """The sign of a direction as int8; `SKIP` or `LOST` where it has none.

    `usable` is None where it is known that all elements are, and the direction a finite number.
    """
    sign = jnp.where(direction > 0, 1, jnp.where(direction < 0, -1, 0))
    if usable is not None:
        sign = jnp.where(usable, jnp.where(jnp.abs(direction) < jnp.inf, sign, LOST), SKIP)
    return sign.astype(jnp.int8)


def signed(x, size):
    """A size times the sign of `x`, which is 0 for 0."""
    return size * jnp.sign(x)


def update(spec, direction, usable, p, s, signed=signed):
    """The update that a direction leads to, with its weight decay; `usable` as for `signs`.

    A trust ratio is part of the step size already. `signed(x, size)` is the implementation's.
    """
    if spec.rule.form == "value":
        return s.step_size * decayed(spec, direction, usable, p, s)
    step = signed(direction, s.step_size)
    if usable is not None:
        step = jnp.where(jnp.abs(direction) < jnp.inf, step, jnp.nan)
    if spec.decay == "decoupled":
        step = step + (s.step_size * s.weight_decay) * p
    return step if usable is None else jnp.where(usable, step, 0)


def decayed(spec, direction, usable, p, s):
    """A direction with its weight decay, and 0 where an element is not usable."""
    if spec.decay == "decoupled":
        direction = direction + s.weight_decay * p
    return direction if usable is None else jnp.where(usable, direction, 0)


def update_from_signs(spec, signs, out_dtype, p, s):
    """The update, from the int8 signs that a step has kept."""
    # As floating-point numbers, which XLA's CPU compiler compares four times as fast as bytes.
    signs = signs.astype(s.step_size.dtype)
    direction = jnp.where(signs == LOST, jnp.nan, signs)
    update = s.step_size * decayed(spec, direction, signs != SKIP, p, s)
    return update.astype(out_dtype)


def rounded(spec, p, dtype, random, dither):
    """A parameter in its dtype, and its residual where it has one: `(p, residual)`.

    Args:
      spec: `Spec`.
      p: The parameter after its step, float32 where `dtype` has 16 bits.
      dtype: The one it is stored in.
      random: Called for random uint32 numbers of the elements, if they are needed.
      dither: Called for `Dither.of_residuals` of the elements, if it is needed.
    """
    if spec.param_rounding == "stochastic":
        return params.stochastic(p, dtype, random()), None
    if spec.param_rounding == "compensated":
        return params.compensated(p, dtype, dither())
    return p.astype(dtype), None


# ------------------------------------------------------------------------------------- decoding


def load(spec, slots, dtype):
    """Slots as values, exactly as they were stored: the largest of a block is its scale."""
    values = []
    for codec, slot in zip(spec.codecs, slots, strict=True):
        if slot.coded:
            absmax = spread(slot.absmax, slot.values.shape, spec.block_size)
            values.append(decode(codec, slot.values, dtype) * absmax.astype(dtype))
        else:
            values.append(slot.values.astype(dtype))
    return tuple(values)


def times(values, factors):
    """Values times numbers; exactly as they are if there are none."""
    return values if factors is None else tuple(f * x for f, x in zip(factors, values, strict=True))


def scale_times(spec, i, absmax, factor):
    """What `decode_times` multiplies codes of slot `i` by, so that values are times a factor."""
    slot, codec = spec.rule.slots[i], spec.codecs[i]
    factor = jnp.asarray(factor, jnp.float32)
    if _by_root(slot, codec):
        return jnp.sqrt(absmax * factor) * codec.unit**0.5
    return absmax * codec.unit * factor


def decode_times(spec, i, codes, scale):
    """Values of the codes of slot `i`, times a number, in float32; not to the last bit."""
    slot, codec = spec.rule.slots[i], spec.codecs[i]
    if _by_root(slot, codec):
        return jnp.square(decode_raw_root(codec, codes) * scale)
    return decode_raw(codec, codes) * scale


def _by_root(slot, codec):
    """Whether a slot is decoded by its root: the product of scale and unit could be too small."""
    return slot.second_moment and codec.unit < 2.0**-32


def new_scales(spec, slots, s):
    """What `decode_new` multiplies slots by: a value for every block, one for all, or None."""

    def scale(slot, codec, stored, factor):
        if not stored.coded and isinstance(factor, float) and factor == 1:
            return None
        factor = jnp.asarray(factor, s.step_size.dtype)
        if not stored.coded:
            return factor
        if slot.second_moment:
            return (jnp.sqrt(stored.absmax) * codec.unit**0.5).astype(factor.dtype) * factor
        return (stored.absmax * codec.unit).astype(factor.dtype) * factor

    columns = zip(spec.rule.slots, spec.codecs, slots, spec.rule.factors(s.own), strict=True)
    return tuple(scale(*column) for column in columns)


def decode_new(spec, slots, scales, dtype, roots=None):
    """New slots as a rule's `direction` wants them: second moments as their square roots.

    `scales` are `new_scales`, those of blocks spread over the elements. `roots` are those that
    `encode` had at hand.
    """

    def decoded(slot, codec, stored, scale, root_of_x):
        if root_of_x is not None:
            values = root_of_x
        elif stored.coded:
            raw = decode_raw_root if slot.second_moment else decode_raw
            values = raw(codec, stored.values, dtype)
        else:
            values = stored.values.astype(dtype)
            values = root(values) if slot.second_moment else values
        return values if scale is None else values * scale.astype(dtype)

    roots = roots or (None,) * len(slots)
    columns = zip(spec.rule.slots, spec.codecs, slots, scales, roots, strict=True)
    return tuple(decoded(*column) for column in columns)


def load_new(spec, slots, s, dtype):
    """New slots as a rule's `direction` wants them, of a whole array."""
    scales = tuple(
        spread(scale, slot.values.shape, spec.block_size) if slot.coded else scale
        for slot, scale in zip(slots, new_scales(spec, slots, s), strict=True)
    )
    return decode_new(spec, slots, scales, dtype)


@jax.custom_jvp
def root(x):
    """The square root, with a derivative of 0 at 0: nothing is to be learnt from it there."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = root(x)
    return y, jnp.where(x > 0, dx / jnp.where(x > 0, 2 * y, 1), 0)


# ------------------------------------------------------------------------------------- encoding


def prepared(spec, absmaxes, fractions):
    """What encoding a slot wants to know of its blocks, for every slot; None without codes.

    Args:
      spec: `Spec`.
      absmaxes: The new scales; None for slots without codes.
      fractions: Called for `Dither.fractions` of a slot, by its index; shaped like the scales.
    """
    of_slots = []
    for i, (codec, absmax) in enumerate(zip(spec.codecs, absmaxes, strict=True)):
        if absmax is None:
            of_slots.append(None)
        else:
            u = fractions(i) if codec.dithered else NEAREST
            of_slots.append(codec.prepare(absmax, u))
    return tuple(of_slots)


# ---------------------------------------------------------------------------------------- norms


def by_layer(value, x):
    """A scalar; or a vector with a value for every layer of the stack `x`, shaped to multiply it.

    What counts as a layer is what lies behind an index of the first axis.
    """
    return value.reshape(-1, *(1,) * (x.ndim - 1)) if value.ndim else value


def sums_of_squares(spec, xs, again=None):
    """The sums of squares of a leaf's arrays, in the last axis; of a stack those of every layer.

    Grain by grain with `again`, as for `pieces.squares`: then they are those of the leaf in pieces.
    """
    x = xs[0]
    layers = x.shape[0] if spec.stacked else None
    if is_divided(x):  # over devices, by XLA: it is not to change its shape
        axes = tuple(range(spec.stacked, x.ndim))
        return jnp.stack([jnp.sum(jnp.square(x), axis=axes) for x in xs], -1)
    if again is not None and can_be_cut(x.size, layers):  # a small leaf is never cut
        return sum_of_grains(jnp.stack(squares(xs, again), -1), layers)
    sums = jnp.stack(squares_of_rows(*(x.reshape(layers or 1, -1) for x in xs)), -1)
    return sums if spec.stacked else sums[0]


def sum_of_grains(sums, layers=None):
    """The sum of a leaf, or the sums of every layer, from those of all its grains (axis 0)."""
    # Without the barrier XLA makes one sum of the two, in another order.
    sums = jax.lax.optimization_barrier(sums)
    if layers is not None:
        sums = sums.reshape(layers, len(sums) // layers, *sums.shape[1:])
    return jnp.sum(sums, axis=0 if layers is None else 1)


def ratio(sums, s):
    """The trust ratio, from the sums of squares of parameters and direction in the last axis.

    The factor between a direction and its step: 1 when either norm is zero. A norm that is not a
    number makes a ratio that is none: what is broken is to be seen.
    """
    norms, s = root(sums), s.astype(sums.dtype)
    param_norm, update_norm = norms[..., 0], norms[..., 1]
    zero = (param_norm == 0) | (update_norm == 0)
    value = s.ratio_scale * param_norm / jnp.where(zero, 1, update_norm)
    return jnp.where(zero, 1, jnp.clip(value, s.ratio_low, s.ratio_high))
