"""One step of one leaf, on decoded values: what the implementations share.

An implementation reads and writes memory. Everything between, on values of any shape, stands here
and in `rules` and `codecs`, so that XLA and a GPU kernel cannot come to differ.

- `gradient`: what the moments see of the gradient, and which of its elements are usable.
- `moments`: the new slots.
- `signs`, `signed_step`: the step of a rule that goes by a sign.
- `direction`: the step of a rule that goes by its new slots, and what is left of it where an
  element is not usable.
"""

from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels import rules
from pallas_kernels.codecs import Codec, decode, decode_root, with_sign_of

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


def coded(slot):
    """Whether a slot holds 8-bit codes."""
    return slot.dtype == jnp.uint8


def gradient(spec, g, p, s):
    """The gradient as the moments see it, and which of its elements they can take."""
    if s.grad_scale is not None:
        g = s.grad_scale * g
    if spec.decay == "coupled":
        g = g + s.weight_decay * p
    return g, jnp.abs(g) <= spec.rule.grad_limit


def moments(spec, g, usable, old, s):
    """The new slots; the old values where an element is not usable."""
    new = spec.rule.moments(g, old, s)
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
    """A direction with its weight decay, and 0 where an element is not usable."""
    if spec.decay == "decoupled":
        direction = direction + s.weight_decay * p
    return jnp.where(usable, direction, 0)


def direction(spec, stored, usable, p, s):
    """The direction of a rule that goes by its new slots, `stored` as `decode_for_step` gives them."""
    return decayed(spec, spec.rule.direction(stored, s), usable, p, s)


def decode_slots(spec, slots, absmaxes, dtype):
    """Slots as values. `absmaxes` are spread over the elements; None for slots without codes."""
    return tuple(
        decode(codec, x, dtype) * absmax.astype(dtype) if coded(x) else x.astype(dtype)
        for codec, x, absmax in zip(spec.codecs, slots, absmaxes, strict=True)
    )


def decode_for_step(spec, slots, roots, dtype):
    """Slots as a rule's `direction` wants them: second moments as their square roots.

    `roots` are scales as in `decode_slots`, those of second moments with their roots taken.
    """
    return tuple(
        _decode_root(codec, x, scale, dtype) if slot.second_moment
        else decode_slots(spec._replace(codecs=(codec,)), (x,), (scale,), dtype)[0]
        for slot, codec, x, scale in zip(spec.rule.slots, spec.codecs, slots, roots, strict=True)
    )  # fmt: skip


def _decode_root(codec, x, scale, dtype):
    if coded(x):
        return decode_root(codec, x, dtype) * scale.astype(dtype)
    return jnp.sqrt(x.astype(dtype))


def scales_for_step(spec, absmaxes):
    """Per block: what `decode_for_step` multiplies codes by."""
    return tuple(
        None if a is None else jnp.sqrt(a) if slot.second_moment else a
        for slot, a in zip(spec.rule.slots, absmaxes, strict=True)
    )
