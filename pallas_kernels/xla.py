"""The step in plain `jax.numpy`: for every device, and the reference for the kernels.

Written for what XLA makes of it. Elementwise work stays in the parameter's own shape, because XLA
writes a result over a donated operand only where their indices agree. And the stages that read the
old state are kept before the stage that overwrites it, with `optimization_barrier`: otherwise XLA
saves itself with a copy of the state. (For a float32 slot only the CPU needs that: on a GPU XLA
writes direction and slot in one pass.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import optimization_barrier, platform_dependent

from pallas_kernels import rules
from pallas_kernels.blocks import block_absmax, inverse_scale, spread
from pallas_kernels.codecs import Codec, decode, encode
from pallas_kernels.dtypes import compute_dtype, promote
from pallas_kernels.hashing import mix, uniform

_SKIP = -128
"""In an int8 direction: leave this element alone."""


class Spec(NamedTuple):
    """The static choices of a step."""

    rule: rules.Rule
    codecs: tuple[Codec, ...]
    block_size: int | None
    decay: str | None
    """Weight decay: "decoupled" (added to the direction), "coupled" (to the gradient: L2), None."""
    emit: str = "updates"
    """What a step returns: "updates" to be added to the parameters, or the new "params"."""


def step(spec, g, p, slots, absmaxes, s, key):
    """One optimizer step of one leaf.

    Args:
      spec: `Spec`.
      g: Gradient, any floating dtype.
      p: Parameter, or None where neither weight decay nor a trust ratio needs it.
      slots: Arrays in the parameter's shape: uint8 codes, or floating point.
      absmaxes: One per slot; None for slots that are not codes.
      s: `rules.Scalars`.
      key: uint32 scalar, different for every leaf and step.

    Returns:
      `(out, slots, absmaxes)`. `out` is the update, in the dtype that `g` and `p` promote to; or
      the new parameter in its own dtype.
    """
    rule, any_coded = spec.rule, any(map(_coded, slots))
    out_dtype = g.dtype if p is None else promote(g.dtype, p.dtype)
    dtype = compute_dtype(out_dtype)
    s = s.astype(dtype)
    p_dtype, to_params = None if p is None else p.dtype, spec.emit == "params"
    g, p = g.astype(dtype), None if p is None else p.astype(dtype)
    g = s.grad_scale * g
    if spec.decay == "coupled":
        g = g + s.weight_decay * p
    usable = jnp.abs(g) <= rule.grad_limit

    def moments(slots, absmaxes):
        old = _load(spec, slots, absmaxes, dtype)
        new = rule.moments(g, old, s)
        return tuple(jnp.where(usable, n, o) for n, o in zip(new, old, strict=True))

    def decayed(direction, usable):
        if spec.decay == "decoupled":
            direction = direction + s.weight_decay * p
        return jnp.where(usable, direction, 0)

    def emitted(direction):
        update = s.step_size * direction
        return (p + update).astype(p_dtype) if to_params else update.astype(out_dtype)

    def direction_from_new(stored):
        new_slots, new_absmaxes = stored
        return decayed(rule.direction(_load(spec, new_slots, new_absmaxes, dtype), s), usable)

    # Stage 1, from the old state: the new scales, and a direction that needs the old slots.
    direction = None
    if rule.from_old:
        direction = rule.direction(g, _load(spec, slots, absmaxes, dtype), s)
        if to_params:
            direction = emitted(decayed(direction, usable))  # and nothing is left for stage 3
        else:
            direction = jnp.where(usable, direction, _SKIP).astype(jnp.int8)
    new_absmaxes = tuple(
        block_absmax(new, spec.block_size) if _coded(x) else None
        for new, x in zip(moments(slots, absmaxes), slots, strict=True)
    )
    stage = direction, new_absmaxes, slots, absmaxes
    if any_coded:
        stage = optimization_barrier(stage)
    else:
        stage = platform_dependent(stage, cpu=optimization_barrier, default=_same)
    direction, new_absmaxes, slots, absmaxes = stage

    # Stage 2, the old state is overwritten.
    stored = _store(spec, moments(slots, absmaxes), slots, new_absmaxes, key), new_absmaxes

    # Stage 3, the update.
    if rule.from_old:
        if to_params:
            return direction, *stored
        direction = decayed(direction.astype(dtype), direction != _SKIP)
    else:
        # The barrier makes XLA read the codes, instead of what it computed them from.
        stored = optimization_barrier(stored) if any_coded else stored
        direction = direction_from_new(stored)
    if rule.trust_ratio:
        ratio = rules.trust_ratio(_norm(p), _norm(direction), s)
        if any_coded:
            # On a GPU it takes fewer bytes to decode twice than to keep a direction in between.
            again = platform_dependent((ratio, stored), cpu=_same, default=optimization_barrier)
            ratio, direction = again[0], direction_from_new(again[1])
        direction = ratio * direction
    return emitted(direction), *stored


def _same(x):
    return x


def _coded(slot):
    return slot.dtype == jnp.uint8


def _load(spec, slots, absmaxes, dtype):
    """Slots as values."""
    return tuple(
        decode(codec, x, dtype) * spread(absmax, x.shape, spec.block_size).astype(dtype)
        if _coded(x)
        else x.astype(dtype)
        for codec, x, absmax in zip(spec.codecs, slots, absmaxes, strict=True)
    )


def _store(spec, values, slots, absmaxes, key):
    """Values as slots, in the precision that the slots have."""
    out = []
    for i, (slot, codec, value, x, absmax) in enumerate(
        zip(spec.rule.slots, spec.codecs, values, slots, absmaxes, strict=True)
    ):
        if _coded(x):
            scale = spread(inverse_scale(absmax), x.shape, spec.block_size).astype(value.dtype)
            height = uniform(mix(key + jnp.uint32(i)), x.shape) if slot.second_moment else 0.5
            value = encode(codec, value, scale, height, keep_nonzero=slot.second_moment)
        out.append(value.astype(x.dtype))
    return tuple(out)


def _norm(x):
    return jnp.sqrt(jnp.sum(jnp.square(x)))
