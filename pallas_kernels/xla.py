"""The step in plain `jax.numpy`: for every device, and the reference for the kernels.

Written for what XLA makes of it. Elementwise work stays in the parameter's own shape, because XLA
writes a result over a donated operand only where their indices agree. And the stages that read the
old state are kept before the stage that overwrites it, with `optimization_barrier`: otherwise XLA
saves itself with a copy of the state. (For a float32 slot only the CPU needs that: on a GPU XLA
writes direction and slot in one pass.)
"""

import jax.numpy as jnp
from jax.lax import optimization_barrier, platform_dependent

from pallas_kernels import rules
from pallas_kernels import step as shared
from pallas_kernels.blocks import block_absmax, spread
from pallas_kernels.codecs import as_bytes, encode
from pallas_kernels.dtypes import compute_dtype, promote
from pallas_kernels.hashing import mix, uniform, whole_key
from pallas_kernels.step import Spec, coded


def step(spec: Spec, g, p, slots, absmaxes, s, key):
    """One optimizer step of one leaf.

    Args:
      spec: `Spec`.
      g: Gradient, any floating dtype.
      p: Parameter, or None where neither weight decay nor a trust ratio needs it.
      slots: Arrays in the parameter's shape: uint8 codes, or floating point.
      absmaxes: One per slot; None for slots that are not codes.
      s: `rules.Scalars`.
      key: uint32 scalar, different for every leaf and step; or a pair of them, one for the step and
        one for the leaf, which a kernel can put together by itself.

    Returns:
      `(out, slots, absmaxes)`. `out` is the update, in the dtype that `g` and `p` promote to; or
      the new parameter in its own dtype.
    """
    rule, any_coded = spec.rule, any(map(coded, slots))
    out_dtype = g.dtype if p is None else promote(g.dtype, p.dtype)
    dtype = compute_dtype(out_dtype)
    s = s.astype(dtype).prepared()
    p_dtype, to_params = None if p is None else p.dtype, spec.emit == "params"
    g, p = g.astype(dtype), None if p is None else p.astype(dtype)
    g, usable = shared.gradient(spec, g, p, s)

    def moments(slots, absmaxes):
        return shared.moments(spec, g, usable, shared.load(spec, slots, absmaxes, dtype), s)

    def emitted(update):
        return (p + update).astype(p_dtype) if to_params else update.astype(out_dtype)

    # Stage 1, from the old state: the new scales, and a direction that needs the old slots.
    direction = None
    if rule.from_old:
        mixed = rule.direction(g, shared.load(spec, slots, absmaxes, dtype), s)
        if to_params:  # and nothing is left for stage 3
            direction = emitted(shared.signed_step(spec, mixed, usable, p, s))
        else:
            direction = shared.signs(mixed, usable)
    new_absmaxes = tuple(
        block_absmax(new, spec.block_size) if coded(x) else None
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
        return shared.update_from_signs(spec, direction, out_dtype, p, s), *stored
    # The barrier makes XLA read the codes, instead of what it computed them from.
    stored = optimization_barrier(stored) if any_coded else stored
    direction = shared.direction_from_new(spec, *stored, usable, p, s, dtype)
    if rule.trust_ratio:
        ratio = rules.trust_ratio(shared.norm(p), shared.norm(direction), s)
        if any_coded:
            # On a GPU it takes fewer bytes to decode twice than to keep a direction in between.
            again = platform_dependent((ratio, stored), cpu=_same, default=optimization_barrier)
            ratio, stored_again = again
            direction = shared.direction_from_new(spec, *stored_again, usable, p, s, dtype)
        direction = ratio * direction
    return emitted(s.step_size * direction), *stored


def _same(x):
    return x


def _store(spec, values, slots, absmaxes, key):
    """Values as slots, in the precision that the slots have."""
    out, key = [], whole_key(key)
    for i, (slot, codec, value, x, absmax) in enumerate(
        zip(spec.rule.slots, spec.codecs, values, slots, absmaxes, strict=True)
    ):
        if coded(x):
            scale = spread(codec.scale(absmax), x.shape, spec.block_size).astype(value.dtype)
            height = uniform(mix(key + jnp.uint32(i)), x.shape) if slot.second_moment else None
            codes = encode(codec, value, scale, height, keep_nonzero=slot.second_moment)
            value = as_bytes(codes)
        out.append(value.astype(x.dtype))
    return tuple(out)
