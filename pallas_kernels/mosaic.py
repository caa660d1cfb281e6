"""The step of one leaf as Pallas kernels on the Mosaic GPU backend.

A step of Lion is one kernel, a step of LAMB two: the first writes the new moments and sums up what
the norms need, the second rebuilds the direction from the new codes, which moves fewer bytes than
to keep it. State and parameters are written in place, through references.

What happens between reading and writing is that of `step`, `rules` and `codecs`, as everywhere.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import rules
from pallas_kernels import step as shared
from pallas_kernels.codecs import as_bytes, encode
from pallas_kernels.dtypes import promote
from pallas_kernels.hashing import mix, uniform_at, whole_key
from pallas_kernels.ladders import for_kernel
from pallas_kernels.mosaic_launch import run_leaf
from pallas_kernels.mosaic_tile import as_rows, cut
from pallas_kernels.step import Spec


def step(spec: Spec, g, p, slots, absmaxes, s, key, *, interpret=None):
    """One optimizer step of one leaf with 8-bit slots: arguments and results of `xla.step`."""
    leaf = _Leaf.of(spec, g, p, slots, absmaxes)
    if not any(slot.second_moment for slot in spec.rule.slots):
        key = None  # and XLA need not make it
    call = _Call(spec, leaf, _Hyper.of(s, key), interpret)
    in_place = spec.emit == "params"
    out_dtype = g.dtype if p is None else promote(g.dtype, p.dtype)
    name = spec.rule.name

    if spec.rule.from_old and in_place:
        p_ref = jax.new_ref(leaf.p)
        call(f"{name}_step", _step_body, dict(g=leaf.g), dict(p=p_ref, state=leaf.state))
        return jax.freeze(p_ref).reshape(p.shape), *leaf.stored()

    if spec.rule.from_old:
        read = dict(g=leaf.g, p=leaf.p if spec.decay == "coupled" else None)
        out = dict(signs=jax.ShapeDtypeStruct(leaf.g.shape, jnp.int8))
        out, _ = call(f"{name}_signs", _signs_body, read, dict(state=leaf.state), out)
        # The rest of the step is left to XLA, which fuses it with whatever applies the update.
        signs, p32 = out["signs"].reshape(g.shape), None if p is None else p.astype(jnp.float32)
        s = s.astype(jnp.float32)
        return shared.update_from_signs(spec, signs, out_dtype, p32, s), *leaf.stored()

    read = dict(g=leaf.g, p=leaf.p)
    _, sums = call(f"{name}_moments", _moments_body, read, dict(state=leaf.state), sums=3)
    codes, scales = leaf.stored()
    s = s.astype(jnp.float32)
    total = sums.total
    ratio = rules.trust_ratio(jnp.sqrt(total[_PARAM]), jnp.sqrt(total[_UPDATE]), s)
    s = s._replace(step_size=s.step_size * ratio)
    if in_place:
        p_ref = jax.new_ref(leaf.p)
        read = dict(g=leaf.g, sums=sums.of_tiles, state=leaf.rows(codes, scales))
        call = call._replace(hyper=_Hyper.of(s, None))
        call(f"{name}_apply", _apply_body, read, dict(p=p_ref))
        return jax.freeze(p_ref).reshape(p.shape), codes, scales
    # XLA fuses this pass with whatever applies the update, and moves as little for it.
    g, p = g.astype(jnp.float32), p.astype(jnp.float32)
    _, usable = shared.gradient(spec, g, p, s)
    direction = shared.direction_from_new(spec, codes, scales, usable, p, s, jnp.float32)
    return (s.step_size * direction).astype(out_dtype), codes, scales


# ------------------------------------------------------------------------------- kernel bodies
# Called for every tile with what it may read, write, and newly write. The sums that a body returns
# are added up over the leaf.

_UPDATE, _PARAM, _GRADIENT = range(3)
"""Sums of squares that a first pass of LAMB returns, in this order."""


def _step_body(spec, tile, s, key, read, written, out):
    """New moments, and parameters that have made their step."""
    new = _new_moments(spec, tile, s, key, read["g"], written["p"], written["state"])
    mixed = spec.rule.direction(new.g, new.old, s)
    p = new.p + shared.signed_step(spec, mixed, new.usable, new.p, s)
    tile.store(written["p"], p.astype(written["p"].dtype))


def _signs_body(spec, tile, s, key, read, written, out):
    """New moments, and the signs of the step."""
    new = _new_moments(spec, tile, s, key, read["g"], read["p"], written["state"])
    mixed = spec.rule.direction(new.g, new.old, s)
    tile.store(out["signs"], shared.signs(mixed, new.usable))


def _moments_body(spec, tile, s, key, read, written, out):
    """New moments, and the sums of squares of direction, parameters and gradient."""
    new = _new_moments(spec, tile, s, key, read["g"], read["p"], written["state"])
    # A relative error of 1e-6, to either side, is nothing to a norm.
    direction = _direction(
        spec, tile, new.codes, new.absmaxes, new.usable, new.p, s, divide=_divide_roughly
    )
    return tuple(tile.sum(x * x) for x in (direction, new.p, new.g))


def _apply_body(spec, tile, s, key, read, written, out):
    """Parameters that have made their step, from the new moments."""
    codes, absmaxes = _load_state(tile, read["state"])
    p = tile.load(written["p"]).astype(jnp.float32)

    def apply(usable):
        direction = _direction(spec, tile, codes, absmaxes, usable, p, s, divide=_divide)
        tile.store(written["p"], (p + s.step_size * direction).astype(written["p"].dtype))

    def guarded():
        _, usable = shared.gradient(spec, tile.load(read["g"]).astype(jnp.float32), p, s)
        apply(usable)

    # If the sum of squares is in bounds, so is every element, and the gradient need not be read.
    limit = spec.rule.grad_limit**2
    clean = read["sums"][tile.number, _GRADIENT] <= limit
    tile.shortcut(clean, lambda: apply(None), guarded)


class _New(NamedTuple):
    """A tile between reading and writing."""

    g: Any
    p: Any
    usable: Any
    old: Any
    codes: Any
    absmaxes: Any


def _new_moments(spec, tile, s, key, g, p, state):
    """Reads a tile, and writes its new moments."""
    g = tile.load(g).astype(jnp.float32)
    p = None if p is None else tile.load(p).astype(jnp.float32)
    g, usable = shared.gradient(spec, g, p, s)
    codes, absmaxes = _load_state(tile, state)
    old = shared.decode_slots(spec, codes, tuple(map(tile.spread, absmaxes)), jnp.float32)
    codes, absmaxes = [], []
    values = shared.moments(spec, g, usable, old, s)
    for i, (slot, codec, value) in enumerate(
        zip(spec.rule.slots, spec.codecs, values, strict=True)
    ):
        absmax = tile.max(jnp.abs(value) if slot.signed else value)
        height = uniform_at(mix(key + jnp.uint32(i)), *tile.index()) if slot.second_moment else None
        scale = tile.spread(codec.scale(absmax))
        codes.append(encode(codec, value, scale, height, keep_nonzero=slot.second_moment))
        absmaxes.append(absmax)
    for ref, x in zip(state.codes, codes, strict=True):
        tile.store(ref, as_bytes(x))
    for ref, x in zip(state.absmaxes, absmaxes, strict=True):
        tile.store_blocks(ref, x)
    return _New(g, p, usable, old, codes, absmaxes)


def _load_state(tile, state):
    return tuple(map(tile.load, state.codes)), tuple(map(tile.load_blocks, state.absmaxes))


def _direction(spec, tile, codes, absmaxes, usable, p, s, divide):
    scales = tuple(map(tile.spread, shared.scales_for_step(spec, absmaxes, s)))
    stored = shared.decode_for_step(spec, codes, scales, jnp.float32)
    return shared.direction(spec, stored, usable, p, s, divide=divide)


# A division is eight instructions. This one is four and good to 1e-6, and the next one corrects it
# by the remainder.


def _divide_roughly(a, b):
    return a * jnp.exp2(-jnp.log2(b))


def _divide(a, b):
    reciprocal = jnp.exp2(-jnp.log2(b))
    quotient = a * reciprocal
    return quotient + (a - b * quotient) * reciprocal


# ----------------------------------------------------------------------------- around a kernel


PER_THREAD = {"lion": 32, "lamb": 32, "lamb_amsgrad": 32}
"""Elements of a tile in a thread, by rule. With more of them a thread has more to do while it
waits, and there is room for fewer threads. `python -m tests.gpu` times the alternatives."""


class _State(NamedTuple):
    """Slots of a leaf as kernels see them: arrays or references."""

    codes: tuple[Any, ...]
    absmaxes: tuple[Any, ...]


class _Leaf(NamedTuple):
    """A leaf as rows of blocks, with references to its state."""

    g: Any
    p: Any
    state: _State
    shape: tuple[int, ...]
    absmax_shapes: tuple[tuple[int, ...], ...]
    block_size: int

    @classmethod
    def of(cls, spec, g, p, slots, absmaxes):
        def rows(x):
            return None if x is None else as_rows(x, spec.block_size)

        state = _State(
            tuple(jax.new_ref(rows(x)) for x in slots),
            tuple(jax.new_ref(a.reshape(-1)) for a in absmaxes),
        )
        shapes = tuple(a.shape for a in absmaxes)
        return cls(rows(g), rows(p), state, g.shape, shapes, spec.block_size)

    def stored(self):
        """The codes and scales that were written, in their own shapes."""
        codes = tuple(jax.freeze(ref).reshape(self.shape) for ref in self.state.codes)
        refs = zip(self.state.absmaxes, self.absmax_shapes, strict=True)
        return codes, tuple(jax.freeze(ref).reshape(shape) for ref, shape in refs)

    def rows(self, codes, scales):
        """Codes and scales as rows of blocks."""
        return _State(
            tuple(as_rows(x, self.block_size) for x in codes),
            tuple(a.reshape(-1) for a in scales),
        )


class _Hyper(NamedTuple):
    """The scalars of a step as kernels get them, in small arrays; the key may have two parts."""

    floats: Any
    key: Any
    names: tuple[str, ...]

    @classmethod
    def of(cls, s, key):
        given = {name: value for name, value in s._asdict().items() if value is not None}
        floats = jnp.stack([jnp.asarray(x).astype(jnp.float32) for x in given.values()])
        return cls(floats, jax.tree.map(lambda x: x.reshape(1), key), tuple(given))

    def scalars(self, floats):
        """`rules.Scalars`, from the array or a reference to it."""
        return rules.Scalars(**{name: floats[i] for i, name in enumerate(self.names)})


class _Call(NamedTuple):
    """Runs a kernel body over a leaf."""

    spec: Spec
    leaf: _Leaf
    hyper: _Hyper
    interpret: Any

    def __call__(self, name, body, read, written, out=None, sums=0):
        spec, hyper = self.spec, self.hyper
        codecs = zip(spec.rule.slots, spec.codecs, strict=True)
        spec = spec._replace(
            codecs=tuple(for_kernel(codec, slot.second_moment) for slot, codec in codecs)
        )

        def with_scalars(tile, small, written, out):
            key = whole_key(jax.tree.map(lambda ref: ref[0], small["key"]))
            return body(
                spec, tile, hyper.scalars(small["floats"]), key, small["read"], written, out
            )

        leaf = self.leaf
        dtypes = [x.dtype for x in (leaf.g, leaf.p) if x is not None]
        return run_leaf(
            name,
            with_scalars,
            cut(leaf.g.size, leaf.block_size, dtypes, PER_THREAD[spec.rule.name]),
            dict(floats=hyper.floats, key=hyper.key, read=read),
            written,
            out or {},
            sums=sums,
            interpret=self.interpret,
        )
