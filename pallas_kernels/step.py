"""One step of one leaf, on decoded values: what the implementations share.

An implementation reads and writes memory. Everything between, on values of any shape, stands here
and in `rules` and `codecs`, so that XLA and a GPU kernel cannot come to differ.

- `gradient`: what the moments see of the gradient; `usable` says which of its elements they can
  take, `harmless` up to which size of the first moments that need not be asked.
- `moments`: the new slots. `prepared`: what encoding wants to know of their blocks.
- `signs`, `signed_step`: the step of a rule that goes by a sign.
- `direction`: the step of a rule that goes by its new slots, and what is left of it where an
  element is not usable.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import rules
from pallas_kernels.blocks import spread
from pallas_kernels.codecs import Codec, decode, decode_raw, decode_raw_root, with_sign_of
from pallas_kernels.ladders import NEAREST
from pallas_kernels.pieces import can_be_cut, squares, sums_of_squares
from pallas_kernels.places import is_divided

SKIP, LOST = -128, -127
"""Among signs stored as int8: leave this element alone; and its momentum is not a finite number."""


class Spec(NamedTuple):
    """The static choices of a step."""

    rule: rules.Rule
    codecs: tuple[Codec, ...]
    block_size: int | None
    decay: str | None
    """Weight decay: "decoupled" (added to the direction), "coupled" (to the gradient: L2), None."""
    emit: str = "updates"
    """What a step returns: "updates" to be added to the parameters, or the new "params"."""
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


class Stepped(NamedTuple):
    """What a step makes of a leaf."""

    out: Any
    """Updates, in the dtype that gradient and parameter promote to; or parameters in their own."""
    slots: tuple[Any, ...]
    absmaxes: tuple[Any, ...]
    skipped: Any = None
    """How many elements were left alone, a float32 scalar; None if that is not asked for."""


def coded(slot):
    """Whether a slot holds 8-bit codes, as bytes or as `encode` gives them."""
    return jnp.issubdtype(slot.dtype, jnp.integer)


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
    return spec.rule.gradient_share(s) * (0.5 * spec.rule.grad_limit)


def moments(spec, g, usable, old, s):
    """The new slots; the old values where an element is not usable. None: all of them are.

    `old(factors)` are the old slots as values, times numbers, or exactly as they are if it is None.
    """
    new = spec.rule.moments(g, old(spec.rule.decays(s)), s)
    if usable is None:
        return new
    return tuple(jnp.where(usable, n, o) for n, o in zip(new, old(None), strict=True))


def signs(mixed, usable):
    """The sign of `mixed` as int8; `SKIP` or `LOST` where it has none.

    `usable` is None where it is known that all elements are, and `mixed` a finite number.
    """
    sign = jnp.where(mixed > 0, 1, jnp.where(mixed < 0, -1, 0))
    if usable is not None:
        sign = jnp.where(usable, jnp.where(jnp.abs(mixed) < jnp.inf, sign, LOST), SKIP)
    return sign.astype(jnp.int8)


def signed_step(spec, mixed, usable, p, s):
    """The update of a rule that goes by the sign of `mixed`; `usable` as for `signs`."""
    step = jnp.where(mixed != 0, with_sign_of(mixed, s.step_size), 0)
    if usable is not None:
        step = jnp.where(jnp.abs(mixed) < jnp.inf, step, jnp.nan)
    if spec.decay == "decoupled":
        step = step + (s.step_size * s.weight_decay) * p
    return step if usable is None else jnp.where(usable, step, 0)


def decayed(spec, direction, usable, p, s):
    """A direction with its weight decay, and 0 where an element is not usable.

    `usable` is None where it is known that all are.
    """
    if spec.decay == "decoupled":
        direction = direction + s.weight_decay * p
    return direction if usable is None else jnp.where(usable, direction, 0)


def direction(spec, stored, usable, p, s, **divide):
    """The direction of a rule that goes by its new slots, as `decode_for_step` gives them."""
    return decayed(spec, spec.rule.direction(stored, s, **divide), usable, p, s)


def scales(spec, absmaxes, factors=None):
    """What `decode_slots` multiplies slots by, for every block or for all; None for nothing.

    `factors` are numbers that the values are to be multiplied by. Without, values are those that
    were stored, to the last bit: the largest of a block is its scale.
    """
    if factors is None:
        return absmaxes

    def scale(slot, codec, absmax, factor):
        if absmax is None:
            return factor
        factor = jnp.asarray(factor, jnp.float32)
        if _by_root(slot, codec):
            return jnp.sqrt(absmax) * codec.unit**0.5 * jnp.sqrt(factor)
        return absmax * codec.unit * factor

    columns = zip(spec.rule.slots, spec.codecs, absmaxes, factors, strict=True)
    return tuple(scale(*column) for column in columns)


def decode_slots(spec, slots, scales, dtype, *, exactly):
    """Slots as values. `scales` are those of `scales`, of blocks spread over the elements.

    `exactly` is for scales without factors.
    """

    def decoded(slot, codec, x, scale):
        if not coded(x):
            return x.astype(dtype) if scale is None else scale * x.astype(dtype)
        if exactly:
            return decode(codec, x, dtype) * scale.astype(dtype)
        if _by_root(slot, codec):
            return jnp.square(decode_raw_root(codec, x, dtype) * scale.astype(dtype))
        return decode_raw(codec, x, dtype) * scale.astype(dtype)

    columns = zip(spec.rule.slots, spec.codecs, slots, scales, strict=True)
    return tuple(decoded(*column) for column in columns)


def _by_root(slot, codec):
    """Whether a slot is decoded by its root: the product of scale and unit could be too small."""
    return slot.second_moment and codec.unit < 2.0**-32


def prepared(spec, absmaxes, dither, numbers):
    """What encoding a slot wants to know of its blocks, for every slot; None without codes.

    Args:
      spec: `Spec`.
      absmaxes: The new scales; None for slots without codes.
      dither: `Dither`.
      numbers: `Dither.numbers` of the blocks, shaped like the scales.
    """

    def of_slot(i, codec, absmax):
        if absmax is None:
            return None
        return codec.prepare(absmax, dither.fractions(i, numbers) if codec.dithered else NEAREST)

    columns = zip(spec.codecs, absmaxes, strict=True)
    return tuple(of_slot(i, *column) for i, column in enumerate(columns))


def decode_for_step(spec, slots, scales, dtype, roots=None):
    """Slots as a rule's `direction` wants them: second moments as their square roots.

    `scales` are those of `scales_for_step`, of blocks spread over the elements. `roots` are those
    that `encode` had at hand.
    """

    def decoded(slot, codec, x, scale, root_of_x):
        if root_of_x is not None:
            values = root_of_x
        elif coded(x):
            values = (decode_raw_root if slot.second_moment else decode_raw)(codec, x, dtype)
        else:
            values = root(x.astype(dtype)) if slot.second_moment else x.astype(dtype)
        return values if scale is None else values * scale.astype(dtype)

    roots = roots or (None,) * len(slots)
    columns = zip(spec.rule.slots, spec.codecs, slots, scales, roots, strict=True)
    return tuple(decoded(*column) for column in columns)


def scales_for_step(spec, slots, absmaxes, s):
    """What `decode_for_step` multiplies slots by: a value for every block, one for all, or None."""

    def scale(slot, codec, absmax, factor):
        if absmax is None and isinstance(factor, float) and factor == 1:
            return None
        factor = jnp.asarray(factor, s.step_size.dtype)
        if absmax is None:
            return factor
        if slot.second_moment:
            return (jnp.sqrt(absmax) * codec.unit**0.5).astype(factor.dtype) * factor
        return (absmax * codec.unit).astype(factor.dtype) * factor

    columns = zip(spec.rule.slots, spec.codecs, absmaxes, spec.rule.factors(s), strict=True)
    return tuple(scale(*column) for column in columns)


@jax.custom_jvp
def root(x):
    """The square root, with a derivative of 0 at 0: nothing is to be learnt from it there."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = root(x)
    return y, jnp.where(x > 0, dx / jnp.where(x > 0, 2 * y, 1), 0)


def by_layer(value, x):
    """A scalar; or a vector with a value for every layer of the stack `x`, shaped to multiply it.

    What counts as a layer is what lies behind an index of the first axis.
    """
    return value.reshape(-1, *(1,) * (x.ndim - 1)) if value.ndim else value


# -------------------------------------------------------------------------------- whole leaves


def update_from_signs(spec, signs, out_dtype, p, s):
    """The update, from the int8 signs that a step has kept."""
    # As floating-point numbers, which XLA's CPU compiler compares four times as fast as bytes.
    signs = signs.astype(s.step_size.dtype)
    direction = jnp.where(signs == LOST, jnp.nan, signs)
    update = s.step_size * decayed(spec, direction, signs != SKIP, p, s)
    return update.astype(out_dtype)


def direction_from_new(spec, slots, absmaxes, usable, p, s, dtype):
    """The direction, from slots that a step has stored."""
    scales = tuple(
        spread(scale, x.shape, spec.block_size) if coded(x) else scale
        for x, scale in zip(slots, scales_for_step(spec, slots, absmaxes, s), strict=True)
    )
    stored = decode_for_step(spec, slots, scales, dtype)
    return direction(spec, stored, usable, p, s)


def load(spec, slots, absmaxes, dtype):
    """Slots as values, exactly as they were stored."""
    spreads = tuple(
        spread(scale, x.shape, spec.block_size) if coded(x) else scale
        for x, scale in zip(slots, scales(spec, absmaxes), strict=True)
    )
    return decode_slots(spec, slots, spreads, dtype, exactly=True)


def sum_of_squares(spec, x, by_grains):
    """The sum of squares of a leaf; of a stack that of every layer, in a vector.

    Grain by grain if asked for, so that it is that of the leaf in pieces.
    """
    layers = x.shape[0] if spec.stacked else None
    if is_divided(x):  # over devices, by XLA: it is not to change its shape
        return jnp.sum(jnp.square(x), axis=tuple(range(spec.stacked, x.ndim)))
    if by_grains and can_be_cut(x.size, layers):  # a small leaf is never cut
        return sum_of_grains(squares(x), layers)
    sums = sums_of_squares(x.reshape(layers or 1, -1))
    return sums if spec.stacked else sums[0]


def sum_of_grains(sums, layers=None):
    """The sum of a leaf, or the sums of every layer, from those of all its grains (axis 0)."""
    # Without the barrier XLA makes one sum of the two, in another order.
    sums = jax.lax.optimization_barrier(sums)
    if layers is not None:
        sums = sums.reshape(layers, len(sums) // layers, *sums.shape[1:])
    return jnp.sum(sums, axis=0 if layers is None else 1)


def ratio(sums, s):
    """The trust ratio, from the sums of squares of parameters and direction in the last axis."""
    norms = root(sums)
    return rules.trust_ratio(norms[..., 0], norms[..., 1], s.astype(sums.dtype))
