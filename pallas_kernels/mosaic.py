"""The step of one leaf as Pallas kernels on the Mosaic GPU backend.

A step of Lion is one kernel, a step of LAMB two: the first writes the new moments and sums up what
the norms need, the second rebuilds the direction from the new codes, which moves fewer bytes than
to keep it. State and parameters are written in place, through references.

What happens between reading and writing is that of `step`, `rules` and `codecs`, as everywhere.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import mosaic_bodies as bodies
from pallas_kernels import rules
from pallas_kernels import step as shared
from pallas_kernels.blocks import absmax_shape, as_rows
from pallas_kernels.dtypes import promote
from pallas_kernels.kernel_ladders import for_kernel
from pallas_kernels.mosaic_launch import Small, Whole, run_leaf
from pallas_kernels.mosaic_tile import cut
from pallas_kernels.pieces import Piece
from pallas_kernels.step import Spec


def step(spec: Spec, g, p: Any, slots, absmaxes, s, key, *, interpret=None):
    """One optimizer step of one leaf with 8-bit slots: arguments and results of `xla.step`."""
    leaf, s = _Leaf.of(spec, g, p, slots, absmaxes), s.astype(jnp.float32).prepared()
    call = _Call(spec, leaf, _Hyper.of(s, key), interpret)
    in_place = spec.emit == "params"
    out_dtype = promote(*(x.dtype for x in (g, p) if x is not None))
    name = spec.rule.name

    if spec.rule.from_old and in_place:
        written = dict(p=leaf.p, state=leaf.state)
        _, written, _ = call(f"{name}_step", bodies.step_body, dict(g=leaf.g), written)
        return written["p"].reshape(p.shape), *leaf.stored(written["state"])

    if spec.rule.from_old:
        read = dict(g=leaf.g, p=leaf.p if spec.decay == "coupled" else None)
        out = dict(signs=jax.ShapeDtypeStruct(leaf.g.shape, jnp.int8))
        out, written, _ = call(
            f"{name}_signs", bodies.signs_body, read, dict(state=leaf.state), out
        )
        # The rest of the step is left to XLA, which fuses it with whatever applies the update.
        signs = out["signs"].reshape(g.shape)
        p = jax.tree.map(lambda x: x.astype(jnp.float32), p)  # None stays None
        update = shared.update_from_signs(spec, signs, out_dtype, p, s)
        return update, *leaf.stored(written["state"])

    codes, scales, sums, of_tiles = _moments(call)
    ratio = shared.ratio(sums, s)
    return _apply(call, g, p, codes, scales, s, ratio, of_tiles), codes, scales


def moments(spec: Spec, g, p, slots, absmaxes, s, key, *, interpret=None):
    """The new state of a leaf, of which other devices have parts.

    Arguments and results of `xla.moments`, and what the kernel knows of its tiles, which spares
    `apply` a read.
    """
    leaf, s = _Leaf.of(spec, g, p, slots, absmaxes), s.astype(jnp.float32).prepared()
    return _moments(_Call(spec, leaf, _Hyper.of(s, key), interpret))


def apply(spec: Spec, g, p, slots, absmaxes, s, ratio, of_tiles, *, interpret=None):
    """What a leaf makes of its new state: see `xla.apply`."""
    leaf, s = _Leaf.of(spec, g, p, (), ()), s.astype(jnp.float32).prepared()
    call = _Call(spec, leaf, _Hyper.of(s, None), interpret)
    return _apply(call, g, p, slots, absmaxes, s, ratio, of_tiles)


def unknown_tiles(spec: Spec, g, p, slots):
    """In place of what `moments` knows of its tiles: that it knows nothing."""
    leaf = _Leaf.of(spec, g, p, (), ())._replace(shape=slots[0].shape)
    return jnp.full((_cut(spec, leaf).tiles, 3), jnp.inf)


def _moments(call):
    leaf = call.leaf
    read, written = dict(g=leaf.g, p=leaf.p), dict(state=leaf.state)
    name = f"{call.spec.rule.name}_moments"
    _, written, sums = call(name, bodies.moments_body, read, written, sums=3)
    layers = call.layers
    total = sums.total if layers is None else sums.of_layers(layers)
    total = jnp.stack([total[..., bodies.PARAM], total[..., bodies.UPDATE]], -1)
    return *leaf.stored(written["state"]), total, sums.of_tiles


def _apply(call, g, p, codes, scales, s, ratio, of_tiles):
    spec, leaf = call.spec, call.leaf
    s = s._replace(step_size=s.step_size * ratio)
    if spec.emit == "params":
        read = dict(g=leaf.g, sums=Small(of_tiles), state=leaf.rows(codes, scales))
        call = call._replace(hyper=_Hyper.of(s, None))
        _, written, _ = call(f"{spec.rule.name}_apply", bodies.apply_body, read, dict(p=leaf.p))
        return written["p"].reshape(p.shape)
    # XLA fuses this pass with whatever applies the update, and moves as little for it.
    out_dtype = promote(g.dtype, p.dtype)
    g, p = g.astype(jnp.float32), p.astype(jnp.float32)
    _, usable = shared.gradient(spec, g, p, s)
    direction = shared.direction_from_new(spec, codes, scales, usable, p, s, jnp.float32)
    return (shared.by_layer(s.step_size, direction) * direction).astype(out_dtype)


def step_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, key, *, interpret=None):
    """The step of a piece of a leaf: arguments and results of `xla.step_piece`."""
    del key
    p = target if spec.emit == "params" else p
    piece, call, s = _piece(spec, g, p, start, slots, absmaxes, s, interpret=interpret)
    name, leaf = spec.rule.name, call.leaf
    if spec.emit == "params":
        written = dict(p=leaf.p, state=leaf.state)
        _, written, _ = call(f"{name}_step", bodies.step_body, dict(g=leaf.g), written)
        return written["p"].reshape(target.shape), *leaf.stored(written["state"])
    read = dict(g=leaf.g, p=leaf.p if spec.decay == "coupled" else None)
    out = dict(signs=jax.ShapeDtypeStruct(leaf.shape, jnp.int8))
    out, written, _ = call(f"{name}_signs", bodies.signs_body, read, dict(state=leaf.state), out)
    p = jax.tree.map(lambda x: x.astype(jnp.float32), piece.of(p))  # None stays None
    update = shared.update_from_signs(spec, out["signs"], target.dtype, p, s)
    return piece.put(target, update), *leaf.stored(written["state"])


def moments_piece(spec: Spec, g, p, start, slots, absmaxes, s, key, *, interpret=None):
    """The new state of a piece: arguments and results of `xla.moments_piece`."""
    _, call, _ = _piece(spec, g, p, start, slots, absmaxes, s, key, interpret)
    leaf, name = call.leaf, f"{spec.rule.name}_moments"
    read = dict(g=leaf.g, p=leaf.p)
    _, written, sums = call(name, bodies.moments_body, read, dict(state=leaf.state), sums=3)
    grains = sums.of_grains()
    return *leaf.stored(written["state"]), jnp.stack(
        [grains[:, bodies.PARAM], grains[:, bodies.UPDATE]], 1
    )


def apply_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, ratio, *, interpret=None):
    """Parameters or updates of a piece: arguments and result of `xla.apply_piece`."""
    p = target if spec.emit == "params" else p
    s = s._replace(step_size=s.step_size * ratio)
    piece, call, s = _piece(spec, g, p, start, slots, absmaxes, s, interpret=interpret)
    if spec.emit == "params":
        leaf = call.leaf
        read = dict(g=leaf.g, sums=None, state=leaf.rows(slots, absmaxes))
        _, written, _ = call(f"{spec.rule.name}_apply", bodies.apply_body, read, dict(p=leaf.p))
        return written["p"].reshape(target.shape)
    g, p = piece.of(g).astype(jnp.float32), piece.of(p).astype(jnp.float32)
    s = s._replace(
        step_size=piece.by_rows(s.step_size),
        grad_scale=None if s.grad_scale is None else piece.by_rows(s.grad_scale),
    )
    _, usable = shared.gradient(spec, g, p, s)
    # In the shape of the leaf's view, of which scales are in rows, too.
    slots = tuple(x.reshape(g.shape) for x in slots)
    absmaxes = tuple(a.reshape(absmax_shape(g.shape, spec.block_size)) for a in absmaxes)
    direction = shared.direction_from_new(spec, slots, absmaxes, usable, p, s, jnp.float32)
    update = shared.by_layer(s.step_size, direction) * direction
    return piece.put(target, update.astype(target.dtype))


def _piece(spec, g, p, start, slots, absmaxes, s, key=None, interpret=None):
    """`(piece, call, scalars)` for the kernels of a piece."""
    piece = Piece(start, slots[0].size, g.size, spec.block_size)
    leaf = _Leaf.of(spec, g, p, slots, absmaxes)
    leaf = leaf._replace(g=Whole(leaf.g), p=None if p is None else Whole(leaf.p))
    s = s.astype(jnp.float32).prepared()
    return piece, _Call(spec, leaf, _Hyper.of(s, key), interpret, piece), s


# ----------------------------------------------------------------------------- around a kernel


def _per_thread(spec):
    # With more elements there is more to do while a thread waits, and room for fewer threads. As
    # many as leave registers enough, 32 or 16; `python -m tests.gpu` times the alternatives.
    slots = sum(2 if codec.name == "dynamic" else 1 for codec in spec.codecs)
    return spec.per_thread or (32 if slots <= 2 else 16)


class _Leaf(NamedTuple):
    """A leaf, or a piece of it, as rows of blocks.

    Of a piece, gradient and parameters are those of the whole leaf, marked as `Whole`.
    """

    g: Any
    p: Any
    state: bodies.State
    shape: tuple[int, ...]
    absmax_shapes: tuple[tuple[int, ...], ...]
    block_size: int
    layers: int
    """Length of the first axis of the whole leaf."""

    @classmethod
    def of(cls, spec, g, p, slots, absmaxes):
        def rows(x):
            return None if x is None else as_rows(x, spec.block_size)

        state = bodies.State(tuple(rows(x) for x in slots), tuple(a.reshape(-1) for a in absmaxes))
        shapes = tuple(a.shape for a in absmaxes)
        shape = slots[0].shape if slots else g.shape
        layers = g.shape[0] if g.ndim else 1
        return cls(rows(g), rows(p), state, shape, shapes, spec.block_size, layers)

    def stored(self, state):
        """Codes and scales that were written, in their own shapes."""
        codes = tuple(x.reshape(self.shape) for x in state.codes)
        scales = zip(state.absmaxes, self.absmax_shapes, strict=True)
        return codes, tuple(a.reshape(shape) for a, shape in scales)

    def rows(self, codes, scales):
        """Codes and scales as rows of blocks."""
        return bodies.State(
            tuple(as_rows(x, self.block_size) for x in codes),
            tuple(a.reshape(-1) for a in scales),
        )


def _cut(spec, leaf):
    """How a leaf is cut into tiles."""
    dtypes = [x.dtype for x in jax.tree.leaves((leaf.g, leaf.p))]
    return cut(math.prod(leaf.shape), leaf.block_size, dtypes, _per_thread(spec))


class _Hyper(NamedTuple):
    """The scalars of a step as kernels get them, in small arrays; the key may have two parts."""

    floats: Any
    by_layer: Any
    """Those of which every layer of a stack has its own, `(scalars, layers)`; None if there are
    none."""
    key: Any
    names: tuple[tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, s, key):
        given = {name: value for name, value in s._asdict().items() if value is not None}
        for_all = {name: value for name, value in given.items() if not value.ndim}
        by_layer = {name: value for name, value in given.items() if value.ndim}
        return cls(
            jnp.stack(list(for_all.values())),
            jnp.stack(list(by_layer.values())) if by_layer else None,
            jax.tree.map(lambda x: x.reshape(1), key),
            (tuple(for_all), tuple(by_layer)),
        )

    def scalars(self, floats, by_layer, layer):
        """`rules.Scalars` of a layer, from references to the arrays."""
        for_all, own = self.names
        values = {name: floats[i] for i, name in enumerate(for_all)}
        return rules.Scalars(**values, **{name: by_layer[i, layer] for i, name in enumerate(own)})


class _Call(NamedTuple):
    """Runs a kernel body over a leaf."""

    spec: Spec
    leaf: _Leaf
    hyper: _Hyper
    interpret: Any
    piece: Piece | None = None

    @property
    def layers(self):
        """How many layers are stacked in the leaf; None if it is no stack."""
        return self.leaf.layers if self.spec.stacked else None

    def __call__(self, name, body, read, written, out=None, sums=0) -> tuple[Any, Any, Any]:
        spec, hyper = self.spec, self.hyper
        codecs = zip(spec.rule.slots, spec.codecs, strict=True)
        spec = spec._replace(
            codecs=tuple(for_kernel(codec, slot.second_moment) for slot, codec in codecs)
        )

        def with_scalars(tile, small, written, out, sums):
            key = jax.tree.map(lambda ref: ref[0], small["key"])
            layer = None if hyper.by_layer is None else tile.layer(self.layers)
            s = hyper.scalars(small["floats"], small["by_layer"], layer)
            body(spec, tile, s, key, small["read"], written, out, sums)

        small = dict(floats=hyper.floats, by_layer=hyper.by_layer, key=hyper.key)
        return run_leaf(
            name,
            with_scalars,
            _cut(self.spec, self.leaf),
            dict(jax.tree.map(Small, small), read=read),
            written,
            out or {},
            sums=sums,
            piece=self.piece,
            late=self.spec.late,
            interpret=self.interpret,
        )
