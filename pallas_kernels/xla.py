"""The step in plain `jax.numpy`: for every device, and the reference for the kernels.

Written for what XLA makes of it. Elementwise work stays in the parameter's own shape, because XLA
writes a result over a donated operand only where their indices agree. And the stages that read the
old state are kept before the stage that overwrites it, with `optimization_barrier`: otherwise XLA
saves itself with a copy of the state.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import optimization_barrier

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
      `(update, slots, absmaxes)`; the update is in the dtype that `g` and `p` promote to.
    """
    rule = spec.rule
    out_dtype = g.dtype if p is None else promote(g.dtype, p.dtype)
    dtype = compute_dtype(out_dtype)
    s = s.astype(dtype)
    p = None if p is None else p.astype(dtype)

    def gradient(g):
        g = s.grad_scale * g.astype(dtype)
        if spec.decay == "coupled":
            g = g + s.weight_decay * p
        return g, jnp.abs(g) <= rule.grad_limit

    def moments(g, slots, absmaxes):
        g, usable = gradient(g)
        old = _load(spec, slots, absmaxes, dtype)
        new = rule.moments(g, old, s)
        return tuple(jnp.where(usable, n, o) for n, o in zip(new, old, strict=True))

    direction = None
    if rule.from_old:
        scaled, usable = gradient(g)
        direction = rule.direction(scaled, _load(spec, slots, absmaxes, dtype), s)
        direction = jnp.where(usable, direction, _SKIP).astype(jnp.int8)

    # A second pass over codes needs the scale of the first one's result.
    new_absmaxes = tuple(
        block_absmax(n, spec.block_size) if _coded(x) else None
        for n, x in zip(moments(g, slots, absmaxes), slots, strict=True)
    )
    direction, new_absmaxes, slots, absmaxes = optimization_barrier(
        (direction, new_absmaxes, slots, absmaxes)
    )
    new_slots = _store(spec, moments(g, slots, absmaxes), slots, new_absmaxes, key)

    if rule.from_old:
        usable = direction != _SKIP
        direction = direction.astype(dtype)
    else:
        # From the codes as stored, not from the values that went into them.
        new_slots, new_absmaxes = optimization_barrier((new_slots, new_absmaxes))
        _, usable = gradient(g)
        direction = rule.direction(_load(spec, new_slots, new_absmaxes, dtype), s)
    if spec.decay == "decoupled":
        direction = direction + s.weight_decay * p
    direction = jnp.where(usable, direction, 0)
    if rule.trust_ratio:
        direction = rules.trust_ratio(_norm(p), _norm(direction), s) * direction
    return (s.step_size * direction).astype(out_dtype), new_slots, new_absmaxes


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
