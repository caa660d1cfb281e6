"""The bodies of the kernels of a step, between reading a tile and writing it.

Called for every tile with what it may read, write, and newly write, and with what takes the sums of
every tile. What they compute is that of `step`, `rules` and `codecs`, as everywhere.

Nearly always all elements of a tile can be stepped. The new scales, which are needed anyway, tell:
so the general way, which asks every element, is taken by tiles that have something to skip.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels.arithmetic import step as shared
from pallas_kernels.arithmetic.codecs import as_bytes, encode, with_sign_of
from pallas_kernels.arithmetic.hashing import bits_at
from pallas_kernels.arithmetic.params import joined
from pallas_kernels.leaf import StoredSlot

SKIPPED, UPDATE, PARAM = range(3)
"""The sums that a first pass leaves: elements that it skipped, and squares for the trust ratio."""


class Context(NamedTuple):
    """What every body is given."""

    spec: shared.Spec
    tile: Any
    s: Any
    dither: Any


def step_body(at: Context, read, written, out, sums):
    """New moments, and parameters that have made their step."""
    spec, tile, s, _ = at

    def finish(given, new, _):
        def write(direction):
            step = shared.update(spec, direction, new.usable, given.p, s, _signed)
            _store_param(at, given.p + step, written)

        if spec.rule.reads == "old":
            write(given.direction)
        stored = _store_moments(at, new, written["state"])
        if spec.rule.reads == "new":
            write(_direction(at, given.g, *stored))
        _count(tile, new, sums)

    refs = _Read(read["g"], written["p"], written["residual"], written["state"])
    _by_usability(at, refs, finish)


def signs_body(at: Context, read, written, out, sums):
    """New moments, and the signs of the step."""
    spec, tile, _, _ = at

    def finish(given, new, _):
        if spec.rule.reads == "old":
            tile.store(out["signs"], shared.signs(given.direction, new.usable))
        stored = _store_moments(at, new, written["state"])
        if spec.rule.reads == "new":
            direction = _direction(at, given.g, *stored)
            tile.store(out["signs"], shared.signs(direction, new.usable))
        _count(tile, new, sums)

    _by_usability(at, _Read(read["g"], read["p"], None, written["state"]), finish)


def moments_body(at: Context, read, written, out, sums):
    """New moments, what was skipped, and for a ratio the squares of direction and parameters.

    Norms can do without the residual of parameters; a decay that is part of the gradient cannot.
    """
    spec, tile, s, _ = at

    def finish(given, new, squares_of_p):
        # Two bytes again take fewer registers until then than the float32 number.
        again = spec.decay == "decoupled" and spec.rule.ratio and read["p"].dtype != jnp.float32
        p = tile.load(read["p"]) if again else given.p
        stored = _store_moments(at, new, written["state"])
        if spec.rule.ratio:
            p = p.astype(jnp.float32)
            direction = _rough_direction(at, given.g, *stored)
            direction = shared.decayed(spec, direction, new.usable, p, s)
            sums[tile.number, UPDATE] = tile.sum(direction * direction)
            sums[tile.number, PARAM] = squares_of_p
        _count(tile, new, sums)

    refs = _Read(read["g"], read["p"], read["residual"], written["state"])
    _by_usability(at, refs, finish)


def apply_body(at: Context, read, written, out, sums):
    """Parameters that have made their step, from the new moments."""
    spec, tile, s, _ = at
    slots = _load_slots(spec, tile, read["state"])
    p = _load_param(tile, written["p"], written["residual"])

    def apply(g, usable):
        step = shared.update(spec, _direction(at, g, slots), usable, p, s, _signed)
        _store_param(at, p + step, written)

    def guarded():
        g = shared.gradient(spec, tile.load(read["g"]).astype(jnp.float32), p, s)
        apply(g, shared.usable(spec, g))

    if read["sums"] is None:
        guarded()
        return
    # The gradient need not be read where all of it was usable.
    all_usable = read["sums"][tile.number, SKIPPED] == 0
    tile.shortcut(all_usable, lambda: apply(None, None), guarded)


class _Read(NamedTuple):
    """References to what a first pass reads."""

    g: Any
    p: Any
    residual: Any
    slots: Any


class _Given(NamedTuple):
    """What a first pass reads of a tile, decoded."""

    g: Any
    p: Any
    old: Callable
    """As for `step.moments`."""
    absmaxes: Any
    direction: Any
    """What the step is made from, of a rule that reads old slots; else None."""


class _New(NamedTuple):
    """New moments, their scales, and which elements have made the step (None: all)."""

    values: Any
    absmaxes: Any
    usable: Any


def _load(at, refs: _Read):
    spec, tile, s, _ = at
    g = tile.load(refs.g).astype(jnp.float32)
    p = None if refs.p is None else _load_param(tile, refs.p, refs.residual)
    slots = _load_slots(spec, tile, refs.slots)

    def old(factors):
        # Not to the last bit, which would take registers that a thread does not have.
        factors = factors or (1.0,) * len(slots)

        def decoded(i, slot, factor):
            scale = tile.spread(shared.scale_times(spec, i, slot.absmax, factor))
            return shared.decode_times(spec, i, slot.values, scale)

        pairs = enumerate(zip(slots, factors, strict=True))
        return tuple(decoded(i, *pair) for i, pair in pairs)

    g = shared.gradient(spec, g, p, s)
    direction = shared.direction(spec, g, old(None), s) if spec.rule.reads == "old" else None
    return _Given(g, p, old, tuple(slot.absmax for slot in slots), direction)


def _load_param(tile, p, residual):
    """Parameters in float32, from references to them and to their residual or None."""
    p = tile.load(p)
    return p.astype(jnp.float32) if residual is None else joined(p, tile.load(residual))


def _store_param(at, p, written):
    """Writes parameters, and their residual if they have one."""
    spec, tile, _, dither = at

    def random():
        return bits_at(dither.key(), *tile.index(dither.place))

    def of_rows():
        return tile.spread(dither.of_residuals(tile.blocks(dither.place)))

    p, residual = shared.rounded(spec, p, written["p"].dtype, random, of_rows)
    tile.store(written["p"], p)
    if residual is not None:
        tile.store(written["residual"], residual)


def _load_slots(spec, tile, slots):
    """Slots in registers, with rungs in place of codes where that is as good."""

    def values(codec, codes):
        if len(slots) == 1 or not codec.signed or codec.top > 127:
            return codes
        # A conversion from int8 takes turns with logarithms and powers, of which several slots have
        # many; one from uint8 does not.
        return (codes ^ jnp.uint8(128)).astype(jnp.float32) - 128

    pairs = zip(spec.codecs, slots, strict=True)
    return tuple(
        StoredSlot(values(codec, tile.load(x.values)), tile.load_blocks(x.absmax))
        for codec, x in pairs
    )


def _by_usability(at, refs: _Read, finish):
    """Calls `finish(given, new, squares)` in the way that a tile needs.

    `squares` is the sum of those of the parameters, for a ratio. There is one sum for them and the
    question which way that is.
    """
    spec, tile, s, _ = at
    ratio = spec.rule.ratio

    def moments(given, usable):
        values = shared.moments(spec, given.g, usable, given.old, s)
        slots = zip(spec.rule.slots, values, strict=True)
        absmaxes = tuple(tile.max(jnp.abs(x) if slot.signed else x) for slot, x in slots)
        return _New(values, absmaxes, usable)

    def squares(given):
        return tile.row_sums(given.p * given.p)

    def general():
        # Read anew, or what only this way needs would fill the registers of the other one. But for
        # Mosaic, one slot is little, and parameters that only a step needs would not be read ahead.
        again = _load(at, refs) if tile.reads_again or len(refs.slots) > 1 else given
        again = again if ratio or tile.reads_again else again._replace(p=given.p)
        new = moments(again, shared.usable(spec, again.g))
        finish(again, new, tile.total(squares(again)) if ratio else None)

    given = _load(at, refs)
    of_rows = squares(given) if ratio else 0.0
    new = moments(given, None)
    largest = jnp.maximum(new.absmaxes[0], given.absmaxes[0])
    # A comparison with NaN is false.
    harmless = largest <= shared.harmless(spec, s)
    total = tile.total(jnp.where(harmless, of_rows, jnp.inf))
    tile.shortcut(total < jnp.inf, lambda: finish(given, new, total), general)


def _count(tile, new, sums):
    """Sums up the elements that were skipped, where somebody asks for sums."""
    if sums is not None:
        skipped = 0.0 if new.usable is None else tile.sum(jnp.where(new.usable, 0.0, 1.0))
        sums[tile.number, SKIPPED] = skipped


def _store_moments(at, new, refs):
    """Writes the new moments of a tile. Returns them as slots, and roots that are at hand."""
    spec, tile, _, dither = at
    # Mosaic finds no layout for numbers that nothing is made of, and searches without end.
    dithered = any(codec.dithered for codec in spec.codecs)
    numbers = tile.blocks(dither.place) if dithered else None
    prepared = shared.prepared(spec, new.absmaxes, lambda i: dither.fractions(i, numbers))
    stored, roots = [], []
    columns = zip(spec.rule.slots, spec.codecs, new.values, prepared, refs, strict=True)
    for slot, codec, value, of_blocks, ref in columns:
        of_elements = tuple(map(tile.spread, of_blocks or ()))
        codes, root = encode(codec, value, of_elements, keep_nonzero=slot.second_moment)
        tile.store(ref.values, as_bytes(codes))
        stored.append(codes)
        roots.append(root if slot.second_moment else None)
    for ref, absmax in zip(refs, new.absmaxes, strict=True):
        tile.store_blocks(ref.absmax, absmax)
    return tuple(map(StoredSlot, stored, new.absmaxes)), tuple(roots)


def _signed(x, size):
    """`step.signed` without a product."""
    return jnp.where(x != 0, with_sign_of(x, size), 0)


# A division is eight instructions. These are fewer, by logarithms.


def _direction(at, g, slots, roots=None):
    """The direction, of which the logarithm's error is corrected by the remainder."""
    spec, tile, s, _ = at

    def divide(a, b):
        reciprocal = jnp.exp2(-jnp.log2(b))
        quotient = a * reciprocal
        return quotient + (a - b * quotient) * reciprocal

    scales = tuple(map(tile.spread, shared.new_scales(spec, slots, s)))
    values = shared.decode_new(spec, slots, scales, jnp.float32, roots)
    return shared.direction(spec, g, values, s, divide)


def _rough_direction(at, g, slots, roots):
    """The direction but for some 1e-6, which is nothing to a norm."""
    spec, tile, s, _ = at
    first, *others = shared.new_scales(spec, slots, s)
    if spec.rule.is_quotient:  # of which the scale can be a part
        log, first = tile.spread(jnp.log2(first)), None  # pyright: ignore[reportArgumentType]
    else:
        log, first = 0.0, tile.spread(first)

    def divide(a, b):
        return a * jnp.exp2(log - jnp.log2(b))

    scales = first, *map(tile.spread, others)
    values = shared.decode_new(spec, slots, scales, jnp.float32, roots)
    return shared.direction(spec, g, values, s, divide)
