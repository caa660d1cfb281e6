"""The step in plain `jax.numpy`: for every device, and the reference for the kernels.

Written for what XLA makes of it. Elementwise work stays in the parameter's own shape, because XLA
writes a result over a donated operand only where their indices agree. And the stages that read the
old state are kept before the stage that overwrites it, with `optimization_barrier`: otherwise XLA
saves itself with a copy of the state. (For a float32 slot only the CPU needs that: on a GPU XLA
writes direction and slot in one pass.)
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import optimization_barrier, platform_dependent, pmax

from pallas_kernels import step as shared
from pallas_kernels.blocks import absmax_shape, as_rows, block_absmax, spread
from pallas_kernels.codecs import as_bytes, encode
from pallas_kernels.dtypes import compute_dtype, promote
from pallas_kernels.pieces import Piece, squares
from pallas_kernels.step import Spec, Stepped, coded


def step(spec: Spec, g, p, slots, absmaxes, s, dither, first=None):
    """One optimizer step of one leaf.

    Args:
      spec: `Spec`.
      g: Gradient, any floating dtype.
      p: Parameter, or None where neither weight decay nor a trust ratio needs it.
      slots: Arrays in the parameter's shape: uint8 codes, or floating point.
      absmaxes: One per slot; None for slots that are not codes.
      s: `rules.Scalars`.
      dither: `Dither`.
      first: The number of the first block if the arrays are a piece of a leaf.

    Returns:
      `Stepped`.
    """
    given = _given(spec, g, p, s)
    out, stored = _new_state(spec, given, slots, absmaxes, dither, first)
    skipped = _skipped(spec, given)
    if spec.rule.from_old:
        if spec.emit != "params":  # and else nothing is left for stage 3
            out = shared.update_from_signs(spec, out, given.out_dtype, given.p, given.s)
        return Stepped(out, *stored, skipped=skipped)
    direction = _direction(spec, given, stored)
    if spec.rule.trust_ratio:
        ratio = shared.ratio(_sums(spec, True, given.p, direction), given.s)
        if any(map(coded, slots)):
            # It takes fewer bytes to decode twice than to keep a direction in between.
            ratio, stored_again = optimization_barrier((ratio, stored))
            direction = _direction(spec, given, stored_again)
        direction = shared.by_layer(ratio, direction) * direction
    out = _emitted(spec, given, given.s.step_size * direction)
    return Stepped(out, *stored, skipped=skipped)


# ------------------------------------------- a step with a trust ratio, on either side of the norms


def moments(spec: Spec, g, p, slots, absmaxes, s, dither):
    """The new state of a leaf, of which other devices have parts: arguments as for `step`.

    Returns:
      `(slots, absmaxes, sums, skipped)`. `sums` are the squares of parameters and direction, `(2,)`
      or `(layers, 2)`, to be added up over the devices for `step.ratio`; `skipped` as of `Stepped`.
    """
    given = _given(spec, g, p, s)
    _, stored = _new_state(spec, given, slots, absmaxes, dither, None)
    direction = _direction(spec, given, stored)
    # Not by grains: a shard is seldom a number of whole ones, and XLA would read it twice.
    return *stored, _sums(spec, False, given.p, direction), _skipped(spec, given)


def apply(spec: Spec, g, p, slots, absmaxes, s, ratio):
    """What a leaf makes of its new state: updates or parameters."""
    given = _given(spec, g, p, s)
    # By itself: along with the first pass, XLA would keep a direction in memory between the two.
    slots, absmaxes, ratio = optimization_barrier((slots, absmaxes, ratio))
    direction = _direction(spec, given, (slots, absmaxes))
    direction = shared.by_layer(ratio.astype(given.dtype), direction) * direction
    return _emitted(spec, given, given.s.step_size * direction)


def _sums(spec, by_grains, *arrays):
    return jnp.stack([shared.sum_of_squares(spec, x, by_grains) for x in arrays], -1)


# ------------------------------------------------------------------------ a leaf that is in pieces


def step_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, dither):
    """The step of a piece, by a rule that needs no norm of the leaf.

    Args:
      spec: `Spec`.
      g: Gradient of the whole leaf.
      p: Its parameter, or None.
      target: What of the leaf has made its step so far: parameters, or updates.
      start: The grain at which the piece begins, an int32 scalar.
      slots: Slots of the piece.
      absmaxes: Scales of the piece, flat; None for slots that are not codes.
      s: As for `step`.
      dither: As for `step`.

    Returns:
      `Stepped` of the piece, with the target of the leaf.
    """
    piece, slots, absmaxes, s = _piece(spec, g, start, slots, absmaxes, s)
    p = target if spec.emit == "params" else p
    first = piece.first_block
    done = step(spec, piece.of(g), piece.of(p), slots, absmaxes, s, dither, first)
    state = _flat(done.slots, done.absmaxes)
    return Stepped(piece.put(target, done.out), *state, done.skipped)


def moments_piece(spec: Spec, g, p, start, slots, absmaxes, s, dither):
    """The first part of a step with a trust ratio: the new state of a piece.

    Returns:
      `(slots, absmaxes, sums, skipped)`. `sums` has a row for every grain, with the squares of
      parameters and direction, for `step.sum_of_grains`; `skipped` as of `Stepped`.
    """
    piece, slots, absmaxes, s = _piece(spec, g, start, slots, absmaxes, s)
    given = _given(spec, piece.of(g), piece.of(p), s)
    _, stored = _new_state(spec, given, slots, absmaxes, dither, piece.first_block)
    direction = _direction(spec, given, stored)
    sums = jnp.stack([squares(given.p), squares(direction)], 1)
    return *_flat(*stored), sums, _skipped(spec, given)


def apply_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, ratio):
    """The second part of a step with a trust ratio, from the new state: returns `target`."""
    piece, slots, absmaxes, s = _piece(spec, g, start, slots, absmaxes, s)
    p = target if spec.emit == "params" else p
    given = _given(spec, piece.of(g), piece.of(p), s)
    direction = _direction(spec, given, (slots, absmaxes))
    direction = shared.by_layer(piece.by_rows(ratio).astype(given.dtype), direction) * direction
    return piece.put(target, _emitted(spec, given, given.s.step_size * direction))


def _piece(spec, g, start, slots, absmaxes, s):
    block = spec.block_size or 256
    piece = Piece(start, slots[0].size, g.size, block)
    slots = tuple(as_rows(x, block) if g.size % block == 0 else x.reshape(-1) for x in slots)
    shape = absmax_shape(slots[0].shape, block)
    if s.grad_scale is not None:
        s = s._replace(grad_scale=piece.by_rows(s.grad_scale))
    return piece, slots, tuple(None if a is None else a.reshape(shape) for a in absmaxes), s


def _flat(slots, absmaxes):
    return slots, tuple(None if a is None else a.reshape(-1) for a in absmaxes)


# ------------------------------------------------------------------------------- parts of a step


class _Given(NamedTuple):
    """What a step is given, in the dtype it computes in."""

    g: Any
    usable: Any
    p: Any
    s: Any
    dtype: Any
    out_dtype: Any


def _given(spec, g, p, s):
    out_dtype = g.dtype if p is None else promote(g.dtype, p.dtype)
    dtype = compute_dtype(out_dtype)
    if p is not None and spec.emit == "params":
        out_dtype = p.dtype
    s = s.astype(dtype).prepared()
    # Of a product of scalars XLA's CPU compiler can make a multiply-add, and then not of the sum's
    # other product: which one would depend on the shape.
    eps = platform_dependent(s.biased_eps, cpu=optimization_barrier, default=_same)
    s = s._replace(biased_eps=eps)
    g, p = g.astype(dtype), None if p is None else p.astype(dtype)
    g = shared.gradient(spec, g, p, s)
    return _Given(g, shared.usable(spec, g), p, s, dtype, out_dtype)


def _skipped(spec, given):
    return jnp.sum(~given.usable, dtype=jnp.float32) if spec.count_skipped else None


def _emitted(spec, given, update):
    if spec.emit == "params":
        update = given.p + update
    return update.astype(given.out_dtype)


def _new_state(spec, given, slots, absmaxes, dither, first):
    """`(out, (slots, absmaxes))`; with a rule that goes by the old slots, what comes of them."""
    g, usable, p, s, dtype, _ = given
    any_coded = any(map(coded, slots))

    def moments(slots, absmaxes):
        values = shared.load(spec, slots, absmaxes, dtype)

        def old(factors):
            pairs = zip(values, factors or (None,) * len(values), strict=True)
            return tuple(x if factor is None else factor * x for x, factor in pairs)

        return shared.moments(spec, g, usable, old, s)

    # Stage 1, from the old state: the new scales, and a direction that needs the old slots.
    out = None
    if spec.rule.from_old:
        mixed = spec.rule.direction(g, shared.load(spec, slots, absmaxes, dtype), s)
        if spec.emit == "params":
            out = _emitted(spec, given, shared.signed_step(spec, mixed, usable, p, s))
        else:
            out = shared.signs(mixed, usable)
    new_absmaxes = tuple(
        _absmax(spec, new) if coded(x) else None
        for new, x in zip(moments(slots, absmaxes), slots, strict=True)
    )
    stage = out, new_absmaxes, slots, absmaxes
    if any_coded:
        stage = optimization_barrier(stage)
    else:
        stage = platform_dependent(stage, cpu=optimization_barrier, default=_same)
    out, new_absmaxes, slots, absmaxes = stage
    # Worked out block by block, not once more for every element.
    prepared = optimization_barrier(_prepared(spec, new_absmaxes, dither, first))

    # Stage 2, the old state is overwritten.
    stored = _store(spec, moments(slots, absmaxes), slots, prepared), new_absmaxes
    # The barrier makes XLA read the codes in stage 3, instead of what it computed them from.
    if any_coded and not spec.rule.from_old:
        stored = optimization_barrier(stored)
    return out, stored


def _absmax(spec, x):
    absmax = block_absmax(x, spec.block_size)
    return pmax(absmax, spec.absmax_axes) if spec.absmax_axes else absmax


def _direction(spec, given, stored):
    slots, absmaxes = stored
    return shared.direction_from_new(
        spec, slots, absmaxes, given.usable, given.p, given.s, given.dtype
    )


def _same(x):
    return x


def _prepared(spec, absmaxes, dither, first):
    """`step.prepared` for blocks that begin with the number `first`, or with 0."""
    shape = next((a.shape for a in absmaxes if a is not None), ())
    numbers = dither.numbers(math.prod(shape), spec.block_size, first).reshape(shape)
    return shared.prepared(spec, absmaxes, dither, numbers)


def _store(spec, values, slots, prepared):
    """Values as slots, in the precision that the slots have."""
    out = []
    columns = zip(spec.rule.slots, spec.codecs, values, slots, prepared, strict=True)
    for slot, codec, value, x, of_blocks in columns:
        if of_blocks is not None:
            of_elements = tuple(spread(y, x.shape, spec.block_size) for y in of_blocks)
            codes, _ = encode(codec, value, of_elements, keep_nonzero=slot.second_moment)
            value = as_bytes(codes)
        out.append(value.astype(x.dtype))
    return tuple(out)
