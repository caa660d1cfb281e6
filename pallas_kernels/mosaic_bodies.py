"""The bodies of the kernels of a step, between reading a tile and writing it.

Called for every tile with what it may read, write, and newly write, and with what takes the sums of
every tile. What they compute is that of `step`, `rules` and `codecs`, as everywhere.

Nearly always all elements of a tile can be stepped. The new scales, which are needed anyway, tell:
so the general way, which asks every element, is taken by tiles that have something to skip.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels import step as shared
from pallas_kernels.codecs import as_bytes, encode

SKIPPED, UPDATE, PARAM = range(3)
"""The sums that a first pass leaves: elements that it skipped, and squares for the trust ratio."""


class State(NamedTuple):
    """Slots of a leaf as kernels see them: arrays or references."""

    codes: tuple[Any, ...]
    absmaxes: tuple[Any, ...]


def step_body(spec, tile, s, dither, read, written, out, sums):
    """New moments, and parameters that have made their step."""
    state = written["state"]

    def write(step):
        tile.store(written["p"], (given.p + step).astype(written["p"].dtype))

    def finish(new, _):
        if spec.rule.from_old:
            write(shared.signed_step(spec, given.mixed, new.usable, given.p, s))
        stored = _store_moments(spec, tile, dither, new, state)
        if not spec.rule.from_old:
            write(s.step_size * _direction(spec, tile, *stored, new.usable, given.p, s))
        _count(tile, new, sums)

    given = _load(spec, tile, s, read["g"], written["p"], state)
    _by_usability(spec, tile, s, given, finish)


def signs_body(spec, tile, s, dither, read, written, out, sums):
    """New moments, and the signs of the step."""
    state = written["state"]

    def finish(new, _):
        tile.store(out["signs"], shared.signs(given.mixed, new.usable))
        _store_moments(spec, tile, dither, new, state)
        _count(tile, new, sums)

    given = _load(spec, tile, s, read["g"], read["p"], state)
    _by_usability(spec, tile, s, given, finish)


def moments_body(spec, tile, s, dither, read, written, out, sums):
    """New moments, the sums of squares of direction and parameters, and what was skipped."""
    state = written["state"]

    def finish(new, squares_of_p):
        stored = _store_moments(spec, tile, dither, new, state)
        direction = _rough_direction(spec, tile, *stored, new.usable, given.p, s)
        sums[tile.number, UPDATE] = tile.sum(direction * direction)
        sums[tile.number, PARAM] = squares_of_p
        _count(tile, new, sums)

    given = _load(spec, tile, s, read["g"], read["p"], state)
    _by_usability(spec, tile, s, given, finish, tile.row_sums(given.p * given.p))


def apply_body(spec, tile, s, dither, read, written, out, sums):
    """Parameters that have made their step, from the new moments."""
    state = State(*_load_state(tile, read["state"]))
    p = tile.load(written["p"]).astype(jnp.float32)

    def apply(usable):
        direction = _direction(spec, tile, state, None, usable, p, s)
        tile.store(written["p"], (p + s.step_size * direction).astype(written["p"].dtype))

    def guarded():
        g = shared.gradient(spec, tile.load(read["g"]).astype(jnp.float32), p, s)
        apply(shared.usable(spec, g))

    if read["sums"] is None:
        guarded()
        return
    # The gradient need not be read where all of it was usable.
    tile.shortcut(read["sums"][tile.number, SKIPPED] == 0, lambda: apply(None), guarded)


class _Given(NamedTuple):
    """What a first pass reads of a tile, decoded; `old` as for `step.moments`."""

    g: Any
    p: Any
    old: Callable
    absmaxes: Any
    mixed: Any
    """What the step is the sign of; None if it is of none."""


class _New(NamedTuple):
    """New moments, their scales, and which elements have made the step (None: all)."""

    values: Any
    absmaxes: Any
    usable: Any


def _load(spec, tile, s, g, p, state):
    g = tile.load(g).astype(jnp.float32)
    p = None if p is None else tile.load(p).astype(jnp.float32)
    codes, absmaxes = _load_state(tile, state)

    def old(factors):
        # Not to the last bit, which would take registers that a thread does not have.
        factors = factors or (1.0,) * len(codes)
        scales = tuple(map(tile.spread, shared.scales(spec, absmaxes, factors)))
        return shared.decode_slots(spec, codes, scales, jnp.float32, exactly=False)

    g = shared.gradient(spec, g, p, s)
    mixed = spec.rule.direction(g, old(None), s) if spec.rule.from_old else None
    return _Given(g, p, old, absmaxes, mixed)


def _load_state(tile, state):
    return tuple(map(tile.load, state.codes)), tuple(map(tile.load_blocks, state.absmaxes))


def _by_usability(spec, tile, s, given, finish, of_rows=0.0):
    """Calls `finish` with the new moments, in the way that a tile needs, and the sum of `of_rows`.

    `of_rows` are numbers for every row, not negative: there is one sum for them and the question.
    """

    def moments(usable):
        values = shared.moments(spec, given.g, usable, given.old, s)
        slots = zip(spec.rule.slots, values, strict=True)
        absmaxes = tuple(tile.max(jnp.abs(x) if slot.signed else x) for slot, x in slots)
        return _New(values, absmaxes, usable)

    new = moments(None)
    largest = jnp.maximum(new.absmaxes[0], given.absmaxes[0])
    # A comparison with NaN is false.
    total = tile.total(jnp.where(largest <= shared.harmless(spec, s), of_rows, jnp.inf))
    tile.shortcut(
        total < jnp.inf,
        lambda: finish(new, total),
        lambda: finish(
            moments(shared.usable(spec, given.g)),
            tile.total(jnp.broadcast_to(of_rows, largest.shape)),
        ),
    )


def _count(tile, new, sums):
    """Sums up the elements that were skipped, where somebody asks for sums."""
    if sums is not None:
        skipped = 0.0 if new.usable is None else tile.sum(jnp.where(new.usable, 0.0, 1.0))
        sums[tile.number, SKIPPED] = skipped


def _store_moments(spec, tile, dither, new, state):
    """Writes the new moments of a tile. Returns them as a `State`, and roots that are at hand."""
    # Mosaic finds no layout for numbers that nothing is made of, and searches without end.
    dithered = any(codec.dithered for codec in spec.codecs)
    numbers = tile.blocks(dither.place) if dithered else None
    prepared = shared.prepared(spec, new.absmaxes, dither, numbers)
    stored, roots = [], []
    columns = zip(spec.rule.slots, spec.codecs, new.values, prepared, state.codes, strict=True)
    for slot, codec, value, of_blocks, codes_ref in columns:
        of_elements = tuple(map(tile.spread, of_blocks or ()))
        codes, root = encode(codec, value, of_elements, keep_nonzero=slot.second_moment)
        tile.store(codes_ref, as_bytes(codes))
        stored.append(codes)
        roots.append(root if slot.second_moment else None)
    for ref, absmax in zip(state.absmaxes, new.absmaxes, strict=True):
        tile.store_blocks(ref, absmax)
    return State(tuple(stored), new.absmaxes), tuple(roots)


# A division is eight instructions. These are fewer, by logarithms.


def _direction(spec, tile, state, roots, usable, p, s):
    """The direction, of which the logarithm's error is corrected by the remainder."""

    def divide(a, b):
        reciprocal = jnp.exp2(-jnp.log2(b))
        quotient = a * reciprocal
        return quotient + (a - b * quotient) * reciprocal

    scales = tuple(map(tile.spread, shared.scales_for_step(spec, state.codes, state.absmaxes, s)))
    stored = shared.decode_for_step(spec, state.codes, scales, jnp.float32, roots)
    return shared.direction(spec, stored, usable, p, s, divide=divide)


def _rough_direction(spec, tile, state, roots, usable, p, s):
    """The direction but for some 1e-6, which is nothing to a norm."""
    first, *others = shared.scales_for_step(spec, state.codes, state.absmaxes, s)
    if spec.rule.is_quotient:  # of which the scale can be a part
        log, first = tile.spread(jnp.log2(first)), None  # pyright: ignore[reportArgumentType]
    else:
        log, first = 0.0, tile.spread(first)

    def divide(a, b):
        return a * jnp.exp2(log - jnp.log2(b))

    scales = first, *map(tile.spread, others)
    stored = shared.decode_for_step(spec, state.codes, scales, jnp.float32, roots)
    return shared.direction(spec, stored, usable, p, s, divide=divide)
