"""The bodies of the kernels of a step, between reading a tile and writing it.

Called for every tile with what it may read, write, and newly write, and with what takes the sums of
every tile. What they compute is that of `step`, `rules` and `codecs`, as everywhere.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels import step as shared
from pallas_kernels.codecs import as_bytes, encode, encode_at_random
from pallas_kernels.hashing import mix, place_of, uniform_at, whole_key

UPDATE, PARAM, GRADIENT = range(3)
"""The sums of squares that a first pass of LAMB leaves."""


class State(NamedTuple):
    """Slots of a leaf as kernels see them: arrays or references."""

    codes: tuple[Any, ...]
    absmaxes: tuple[Any, ...]


def step_body(spec, tile, s, key, read, written, out, sums):
    """New moments, and parameters that have made their step."""
    given = _load(spec, tile, s, read["g"], written["p"], written["state"])
    mixed = spec.rule.direction(given.g, given.old, s)
    p = given.p + shared.signed_step(spec, mixed, given.usable, given.p, s)
    _new_moments(spec, tile, s, key, given, written["state"])
    tile.store(written["p"], p.astype(written["p"].dtype))


def signs_body(spec, tile, s, key, read, written, out, sums):
    """New moments, and the signs of the step."""
    given = _load(spec, tile, s, read["g"], read["p"], written["state"])
    mixed = spec.rule.direction(given.g, given.old, s)
    _new_moments(spec, tile, s, key, given, written["state"])
    tile.store(out["signs"], shared.signs(mixed, given.usable))


def moments_body(spec, tile, s, key, read, written, out, sums):
    """New moments, and the sums of squares of direction, parameters and gradient."""
    given = _load(spec, tile, s, read["g"], read["p"], written["state"])
    sums[tile.number, PARAM] = tile.sum(given.p * given.p)
    squares = tile.sum(given.g * given.g)
    sums[tile.number, GRADIENT] = squares

    def moments(given):
        new = _new_moments(spec, tile, s, key, given, written["state"])
        # A relative error of 1e-6, to either side, is nothing to a norm.
        direction = _direction(spec, tile, new, given.usable, given.p, s, divide=_divide_roughly)
        sums[tile.number, UPDATE] = tile.sum(direction * direction)

    tile.shortcut(
        _all_usable(spec, squares),
        lambda: moments(given._replace(usable=None)),
        lambda: moments(given),
    )


def _all_usable(spec, squares):
    """Whether this sum of squares says that every element of a tile is usable."""
    return squares <= spec.rule.grad_limit**2


def apply_body(spec, tile, s, key, read, written, out, sums):
    """Parameters that have made their step, from the new moments."""
    state = State(*_load_state(tile, read["state"]))
    p = tile.load(written["p"]).astype(jnp.float32)

    def apply(usable):
        direction = _direction(spec, tile, state, usable, p, s, divide=_divide)
        tile.store(written["p"], (p + s.step_size * direction).astype(written["p"].dtype))

    def guarded():
        _, usable = shared.gradient(spec, tile.load(read["g"]).astype(jnp.float32), p, s)
        apply(usable)

    if read["sums"] is None:
        guarded()
        return
    # The gradient need not be read where all of it was usable.
    clean = _all_usable(spec, read["sums"][tile.number, GRADIENT])
    tile.shortcut(clean, lambda: apply(None), guarded)


class _Given(NamedTuple):
    """What a first pass reads of a tile, decoded."""

    g: Any
    p: Any
    usable: Any
    old: Any


def _load(spec, tile, s, g, p, state):
    g = tile.load(g).astype(jnp.float32)
    p = None if p is None else tile.load(p).astype(jnp.float32)
    g, usable = shared.gradient(spec, g, p, s)
    codes, absmaxes = _load_state(tile, state)
    old = shared.decode_slots(spec, codes, tuple(map(tile.spread, absmaxes)), jnp.float32)
    return _Given(g, p, usable, old)


def _new_moments(spec, tile, s, key, given, state):
    """Writes the new moments of a tile, and returns them as slots for `decode_for_step`."""
    stored, absmaxes = [], []
    values = shared.moments(spec, given.g, given.usable, given.old, s)
    columns = zip(spec.rule.slots, spec.codecs, values, state.codes, state.absmaxes, strict=True)
    for i, (slot, codec, value, codes_ref, absmax_ref) in enumerate(columns):
        absmax = tile.max(jnp.abs(value) if slot.signed else value)
        scale = tile.spread(codec.scale(absmax))
        if slot.second_moment:
            index = tile.index(place_of(key))
            height = uniform_at(mix(whole_key(key) + jnp.uint32(i)), *index)
            codes, roots = encode_at_random(codec, value, scale, height, keep_nonzero=True)
            # At hand already, where the codes would have to be decoded.
            stored.append(shared.Decoded(roots, codec.top_level**-0.5))
        else:
            codes = encode(codec, value, scale)
            stored.append(codes)
        tile.store(codes_ref, as_bytes(codes))
        tile.store_blocks(absmax_ref, absmax)
        absmaxes.append(absmax)
    return State(tuple(stored), tuple(absmaxes))


def _load_state(tile, state):
    return tuple(map(tile.load, state.codes)), tuple(map(tile.load_blocks, state.absmaxes))


def _direction(spec, tile, state, usable, p, s, divide):
    scales = shared.scales_for_step(spec, state.codes, state.absmaxes, s)
    scales = tuple(map(tile.spread, scales))
    stored = shared.decode_for_step(spec, state.codes, scales, jnp.float32)
    return shared.direction(spec, stored, usable, p, s, divide=divide)


# A division is eight instructions. This one is four and good to 1e-6, and the next one corrects it
# by the remainder.


def _divide_roughly(a, b):
    return a * jnp.exp2(-jnp.log2(b))


def _divide(a, b):
    reciprocal = jnp.exp2(-jnp.log2(b))
    quotient = a * reciprocal
    return quotient + (a - b * quotient) * reciprocal
