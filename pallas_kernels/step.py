"""One step of one leaf, on decoded values: what the implementations share.

An implementation reads and writes memory. Everything between, on values of any shape, stands here
and in `rules` and `codecs`, so that XLA and a GPU kernel cannot come to differ.

- `gradient`: what the moments see of the gradient, and which of its elements are usable.
- `moments`: the new slots.
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
from pallas_kernels.pieces import can_be_cut, squares
from pallas_kernels.places import is_divided

SKIP = -128
"""Among signs stored as int8: leave this element alone."""


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


def coded(slot):
    """Whether a slot holds 8-bit codes, as bytes or as `encode` gives them."""
    return jnp.issubdtype(slot.dtype, jnp.integer)


def gradient(spec, g, p, s):
    """The gradient as the moments see it, and which of its elements they can take."""
    if s.grad_scale is not None:
        g = by_layer(s.grad_scale, g) * g
    if spec.decay == "coupled":
        g = g + s.weight_decay * p
    return g, jnp.abs(g) <= spec.rule.grad_limit


def moments(spec, g, usable, old, s):
    """The new slots; the old values where an element is not usable. None: all of them are."""
    new = spec.rule.moments(g, old, s)
    if usable is None:
        return new
    return tuple(jnp.where(usable, n, o) for n, o in zip(new, old, strict=True))


def signs(mixed, usable):
    """The sign of `mixed` as int8, or `SKIP`."""
    sign = jnp.where(mixed > 0, 1, jnp.where(mixed < 0, -1, 0))
    return jnp.where(usable, sign, SKIP).astype(jnp.int8)


def signed_step(spec, mixed, usable, p, s):
    """The update of a rule that goes by the sign of `mixed`."""
    step = with_sign_of(mixed, s.step_size)
    if spec.decay != "decoupled":
        return jnp.where((mixed != 0) & usable, step, 0)
    return jnp.where(usable, jnp.where(mixed != 0, step, 0) + (s.step_size * s.weight_decay) * p, 0)


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


def decode_slots(spec, slots, absmaxes, dtype):
    """Slots as values. `absmaxes` are spread over the elements; None for slots without codes."""
    return tuple(
        decode(codec, x, dtype) * absmax.astype(dtype) if coded(x) else x.astype(dtype)
        for codec, x, absmax in zip(spec.codecs, slots, absmaxes, strict=True)
    )


def decode_for_step(spec, slots, scales, dtype):
    """Slots as a rule's `direction` wants them: second moments as their square roots.

    `scales` are those of `scales_for_step`, of blocks spread over the elements. A slot may be
    `Decoded` already.
    """

    def decoded(slot, codec, x, scale):
        if isinstance(x, Decoded):
            values = x.values
        elif coded(x):
            values = (decode_raw_root if slot.second_moment else decode_raw)(codec, x, dtype)
        else:
            values = jnp.sqrt(x.astype(dtype)) if slot.second_moment else x.astype(dtype)
        return values if scale is None else values * scale.astype(dtype)

    columns = zip(spec.rule.slots, spec.codecs, slots, scales, strict=True)
    return tuple(decoded(*column) for column in columns)


class Decoded(NamedTuple):
    """A slot as `decode_for_step` would decode it, in units of `unit` times the block's scale."""

    values: Any
    unit: float


def scales_for_step(spec, slots, absmaxes, s):
    """What `decode_for_step` multiplies slots by: a value for every block, one for all, or None."""

    def scale(slot, codec, x, absmax, factor):
        if absmax is None and isinstance(factor, float) and factor == 1:
            return None
        factor = jnp.asarray(factor, s.step_size.dtype)
        if absmax is None:
            return factor
        root = slot.second_moment
        unit = x.unit if isinstance(x, Decoded) else codec.unit**0.5 if root else codec.unit
        return ((jnp.sqrt(absmax) if root else absmax) * unit).astype(factor.dtype) * factor

    columns = zip(spec.rule.slots, spec.codecs, slots, absmaxes, spec.rule.factors(s), strict=True)
    return tuple(scale(*column) for column in columns)


def by_layer(value, x):
    """A scalar; or a vector with a value for every layer of the stack `x`, shaped to multiply it.

    What counts as a layer is what lies behind an index of the first axis.
    """
    return value.reshape(-1, *(1,) * (x.ndim - 1)) if value.ndim else value


# -------------------------------------------------------------------------------- whole leaves


def update_from_signs(spec, signs, out_dtype, p, s):
    """The update, from the int8 signs that a step has kept."""
    direction = signs.astype(s.step_size.dtype)
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
    """Slots as values."""
    scales = tuple(
        None if absmax is None else spread(absmax, x.shape, spec.block_size)
        for x, absmax in zip(slots, absmaxes, strict=True)
    )
    return decode_slots(spec, slots, scales, dtype)


def sum_of_squares(spec, x, by_grains):
    """The sum of squares of a leaf; of a stack that of every layer, in a vector.

    Grain by grain if asked for, so that it is that of the leaf in pieces.
    """
    layers = x.shape[0] if spec.stacked else None
    # A small leaf is never cut. One that XLA divides over devices is not to change its shape.
    if not by_grains or not can_be_cut(x.size, layers) or is_divided(x):
        return jnp.sum(jnp.square(x), axis=tuple(range(spec.stacked, x.ndim)))
    return sum_of_grains(squares(x), layers)


def sum_of_grains(sums, layers=None):
    """The sum of a leaf, or the sums of every layer, from those of all its grains (axis 0)."""
    # Without the barrier XLA makes one sum of the two, in another order.
    sums = jax.lax.optimization_barrier(sums)
    if layers is not None:
        sums = sums.reshape(layers, len(sums) // layers, *sums.shape[1:])
    return jnp.sum(sums, axis=0 if layers is None else 1)


def ratio(sums, s):
    """The trust ratio, from the sums of squares of parameters and direction in the last axis."""
    norms = jnp.sqrt(sums)
    return rules.trust_ratio(norms[..., 0], norms[..., 1], s.astype(sums.dtype))
