"""The step in plain `jax.numpy`: for every device, and the reference for the kernels.

Written for what XLA makes of it. Elementwise work stays in the parameter's own shape, because XLA
writes a result over a donated operand only where their indices agree. And the stages that read the
old state are kept before the stage that overwrites it, with `optimization_barrier`: otherwise XLA
saves itself with a copy of the state. (For a float32 slot only the CPU needs that: on a GPU XLA
writes direction and slot in one pass.)
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier, platform_dependent, pmax

from pallas_kernels.arithmetic import step as shared
from pallas_kernels.arithmetic.blocks import absmax_shape, as_rows, block_absmax, spread
from pallas_kernels.arithmetic.codecs import as_bytes, encode
from pallas_kernels.arithmetic.dtypes import compute_dtype, promote
from pallas_kernels.arithmetic.hashing import bits_at, index_in
from pallas_kernels.arithmetic.params import joined
from pallas_kernels.arithmetic.pieces import squares
from pallas_kernels.leaf import Applied, Halfway, Leaf, Stepped, StoredSlot


def why_not(leaf: Leaf) -> str | None:
    """Why it cannot step a leaf: it always can."""
    return None


def step(leaf: Leaf) -> Stepped:
    """One optimizer step of one leaf, or of a piece of one by a rule without a trust ratio."""
    given = _given(leaf)
    out, stored = _new_state(given)
    if leaf.spec.rule.reads == "old":
        if leaf.spec.emit != "params":  # and else nothing is left for stage 3
            signs = out
            out = shared.update_from_signs(leaf.spec, signs, given.out_dtype, given.p, given.s)
            out = Applied(out)
    elif not leaf.spec.rule.ratio:
        direction = _direction(given, stored)
        out = shared.update(leaf.spec, direction, given.usable, given.p, given.s)
        out = _emitted(given, out)
    else:
        rough = given.for_norms
        summed = shared.sums_of_squares(leaf.spec, *_squared(rough, stored))
        ratio = shared.ratio(summed, given.s)
        # It takes fewer bytes to make a direction again than to keep it in between; but on a GPU,
        # for numbers that are not decoded, as many.
        anew = functools.partial(_anew, times=2)
        if any(slot.coded for slot in stored):
            again = anew(stored)
        else:
            again = platform_dependent(stored, cpu=anew, default=_same)
        out = _scaled(given, _decayed_direction(given, again), ratio)
    out, stored = _when_all_is_read(leaf, (out, stored))
    return Stepped(leaf.whole(out.out), _in_state(leaf, stored), _skipped(given), out.residual)


# ------------------------------------------- a step with a trust ratio, on either side of the norms


def moments(leaf: Leaf) -> Halfway:
    """The new state of a leaf of which other devices have parts, or of a piece."""
    given = _given(leaf)
    _, stored = _new_state(given)
    rough = given.for_norms
    xs, again = _squared(rough, stored)
    if leaf.piece is None:
        # Not by grains: a shard is seldom a number of whole ones, and XLA would read it twice.
        sums = shared.sums_of_squares(leaf.spec, xs)[None]
    else:
        sums = jnp.stack(squares(xs, again), 1)
    return Halfway(_in_state(leaf, stored), sums, skipped=_skipped(given))


def apply(leaf: Leaf, ratio: Any, tiles: Any = None) -> Applied:
    """What a leaf makes of its new state, which is in its slots: updates or parameters.

    `ratio` is its trust ratio; what a kernel knows of its `tiles` is not needed here.
    """
    given = _given(leaf)
    if leaf.piece is None:
        # By itself: along with the first pass, XLA would keep a direction in memory between them.
        slots, ratio = optimization_barrier((given.slots, ratio))
    else:
        slots, ratio = given.slots, leaf.piece.by_rows(ratio)
    direction = _decayed_direction(given, slots)
    out = _when_all_is_read(leaf, _scaled(given, direction, ratio.astype(given.dtype)))
    return out._replace(out=leaf.whole(out.out))


# ------------------------------------------------------------------------------- parts of a step


class _Given(NamedTuple):
    """What a step is given, in the dtype it computes in: of a piece, in the form of its view."""

    spec: shared.Spec
    g: Any
    usable: Any
    p: Any
    """Parameters, with their residual if they have one."""
    p_without: Any
    """Parameters as they are stored."""
    slots: tuple[StoredSlot, ...]
    s: Any
    dither: Any
    piece: Any
    dtype: Any
    out_dtype: Any

    @property
    def for_norms(self):
        """It, as the first of two passes sees it: without a residual, unless it needs that."""
        return self if self.spec.decay == "coupled" else self._replace(p=self.p_without)


def adopted(leaf: Leaf, halfway: Halfway) -> Halfway:
    """What another implementation made of a leaf, in the form of `moments`: it is that."""
    del leaf
    return halfway


def _given(leaf):
    spec, g, p, slots, s = leaf.spec, leaf.g, leaf.param, leaf.slots, leaf.scalars
    if (piece := leaf.piece) is not None:
        slots = tuple(_view(slot, leaf, piece.block) for slot in slots)
        if s.grad_scale is not None:
            s = s._replace(grad_scale=piece.by_rows(s.grad_scale))
        g, p = piece.of(g), piece.of(p)
    dtype = compute_dtype(g.dtype if p is None else promote(g.dtype, p.dtype))
    s = s.astype(dtype).prepared(spec.rule)
    # Of a product of scalars XLA's CPU compiler can make a multiply-add, and then not of the sum's
    # other product: which one would depend on the shape.
    s = s._replace(own=platform_dependent(s.own, cpu=optimization_barrier, default=_same))
    g, without = g.astype(dtype), None if p is None else p.astype(dtype)
    residual = leaf.residual
    p = without if residual is None else _joined(p, residual.reshape(p.shape)).astype(dtype)
    g = shared.gradient(spec, g, p, s)
    usable = shared.usable(spec, g)
    return _Given(spec, g, usable, p, without, slots, s, leaf.dither, piece, dtype, leaf.out_dtype)


def _view(slot, leaf, block):
    """A slot of a piece as rows of blocks, or flat, as `Piece.of` shows gradient and parameter."""
    values = slot.values
    values = as_rows(values, block) if leaf.g.size % block == 0 else values.reshape(-1)
    absmax = slot.absmax
    return StoredSlot(
        values, None if absmax is None else absmax.reshape(absmax_shape(values.shape, block))
    )


def _when_all_is_read(leaf, made):
    """What a step of a piece has made, before any of it is written over what it is made from."""
    if leaf.piece is None:
        return made
    return platform_dependent(made, cpu=optimization_barrier, default=_same)


def _in_state(leaf, slots):
    """Slots as those of a leaf are: the scales of a piece are flat."""
    if leaf.start is None:
        return slots
    return tuple(
        StoredSlot(x.values, None if x.absmax is None else x.absmax.reshape(-1)) for x in slots
    )


def _skipped(given):
    return jnp.sum(~given.usable, dtype=jnp.float32) if given.spec.count_skipped else None


def _emitted(given, update):
    if given.spec.emit != "params":
        return Applied(update.astype(given.out_dtype))
    p = given.p + update
    if given.spec.param_rounding == "nearest":
        return Applied(p.astype(given.out_dtype))
    p = p.astype(jnp.float32)

    def random():
        return bits_at(given.dither.key(), *_indices(given))

    def dither():
        index, high = _indices(given)
        block = given.spec.block_size or 256
        shift = block.bit_length() - 1
        number = index >> shift
        return given.dither.of_residuals(number if high is None else number | high << 32 - shift)

    rounded, residual = shared.rounded(given.spec, p, given.out_dtype, random, dither)
    return Applied(_as_derived(rounded, p), residual)


def _indices(given):
    return index_in(given.p.shape, given.dither.place, given.piece)


@jax.custom_jvp
def _joined(p, residual):
    return joined(p, residual)


@_joined.defjvp
def _joined_jvp(primals, tangents):
    return joined(*primals), tangents[0].astype(jnp.float32)


@jax.custom_jvp
def _as_derived(rounded, p):
    """Rounded parameters, whose derivative is that of what they were before."""
    del p
    return rounded


@_as_derived.defjvp
def _as_derived_jvp(primals, tangents):
    return primals[0], tangents[1].astype(primals[0].dtype)


def _direction(given, stored):
    values = shared.load_new(given.spec, stored, given.s, given.dtype)
    return shared.direction(given.spec, given.g, values, given.s)


def _decayed_direction(given, stored):
    direction = _direction(given, stored)
    return shared.decayed(given.spec, direction, given.usable, given.p, given.s)


def _squared(given, stored):
    """What is squared for the norms, and how to make it again: arguments of `squares`."""

    def arrays(stored):
        return given.p, _decayed_direction(given, stored)

    return arrays(stored), lambda: arrays(_anew(stored, times=1))


def _anew(stored, times):
    """The same arrays, which XLA takes for others: so it makes anew what is made of them.

    Calls with the same `times` return what XLA takes for the same.
    """
    # Array by array: JAX has no derivative of a barrier of which only some arrays have one.
    for _ in range(times):
        stored = jax.tree.map(optimization_barrier, stored)
    return stored


def _scaled(given, direction, ratio):
    direction = shared.by_layer(ratio, direction) * direction
    return _emitted(given, given.s.step_size * direction)


def _new_state(given):
    """`(out, slots)`; by a rule that reads the old slots, `out` is what comes of them."""
    spec, s, old = given.spec, given.s, given.slots
    # Stage 1, from the old state: the new scales, and a direction that needs the old slots.
    values = shared.load(spec, old, given.dtype)
    out = None
    if spec.rule.reads == "old":
        direction = shared.direction(spec, given.g, values, s)
        if spec.emit == "params":
            out = _emitted(given, shared.update(spec, direction, given.usable, given.p, s))
        else:
            out = shared.signs(direction, given.usable)
    new_absmaxes = _absmaxes(spec, _moments(given, values), old)
    stage = out, new_absmaxes, old
    any_coded = any(slot.coded for slot in old)
    if any_coded:
        stage = optimization_barrier(stage)
    else:
        stage = platform_dependent(stage, cpu=optimization_barrier, default=_same)
    out, new_absmaxes, old = stage
    prepared = _prepared(given, new_absmaxes)

    # Stage 2, the old state is overwritten.
    new = _moments(given, shared.load(spec, old, given.dtype))
    stored = _store(spec, new, old, new_absmaxes, prepared)
    # The barrier makes XLA read the codes in stage 3, instead of what it computed them from.
    if any_coded and spec.rule.reads == "new":
        stored = optimization_barrier(stored)
    return out, stored


def _moments(given, values):
    def old(factors):
        return shared.times(values, factors)

    return shared.moments(given.spec, given.g, given.usable, old, given.s)


def _absmaxes(spec, values, slots):
    """The scales of values by slot; None for those without codes."""
    coded = [value for value, slot in zip(values, slots, strict=True) if slot.coded]
    absmaxes = block_absmax(coded, spec.block_size) if coded else ()
    if spec.absmax_axes:
        absmaxes = [pmax(x, spec.absmax_axes) for x in absmaxes]
    found = iter(absmaxes)
    return tuple(next(found) if slot.coded else None for slot in slots)


def _same(x):
    return x


def _prepared(given, absmaxes):
    """`step.prepared` for the blocks of a leaf, or of a piece, shaped like their scales."""
    shape = next((a.shape for a in absmaxes if a is not None), None)
    if shape is None:  # there are no codes
        return absmaxes
    # Flat, or XLA's CPU compiler would write out the loop over a short last axis.
    flat = tuple(None if a is None else a.reshape(-1) for a in absmaxes)
    first = None if given.piece is None else given.piece.first_block
    numbers = given.dither.numbers(math.prod(shape), given.spec.block_size, first)

    def fractions(i):
        return given.dither.fractions(i, numbers)

    # Worked out block by block, not once more for every element.
    prepared = optimization_barrier(shared.prepared(given.spec, flat, fractions))
    return jax.tree.map(lambda x: x.reshape(shape), prepared)


def _store(spec, values, old, absmaxes, prepared):
    """Values as slots, in the precision that the slots have."""
    stored = []
    columns = zip(spec.rule.slots, spec.codecs, values, old, absmaxes, prepared, strict=True)
    for slot, codec, value, before, absmax, of_blocks in columns:
        if before.coded:
            shape = before.values.shape
            of_elements = tuple(spread(y, shape, spec.block_size) for y in of_blocks)
            codes, _ = encode(codec, value, of_elements, keep_nonzero=slot.second_moment)
            value = as_bytes(codes)
        stored.append(StoredSlot(value.astype(before.values.dtype), absmax))
    return tuple(stored)
