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
from pallas_kernels.dither import Dither
from pallas_kernels.dtypes import promote
from pallas_kernels.kernel_ladders import for_kernel
from pallas_kernels.mosaic_launch import Small, Whole, run_leaf
from pallas_kernels.mosaic_tile import cut
from pallas_kernels.pieces import Piece
from pallas_kernels.step import Spec, Stepped


def step(spec: Spec, g, p: Any, slots, absmaxes, s, dither, *, interpret=None):
    """One optimizer step of one leaf with 8-bit slots: arguments and results of `xla.step`."""
    leaf, s = _Leaf.of(spec, g, p, slots, absmaxes), s.astype(jnp.float32).prepared()
    call = _Call(spec, leaf, _Hyper.of(s, dither), interpret)
    if spec.emit == "params" and not spec.rule.trust_ratio:
        new_p, stored, skipped = _in_one_pass(call)
        return Stepped(new_p.reshape(p.shape), *stored, skipped)

    out_dtype = promote(*(x.dtype for x in (g, p) if x is not None))
    if spec.rule.from_old:
        signs, stored, skipped = _signs(call)
        # The rest of the step is left to XLA, which fuses it with whatever applies the update.
        p = jax.tree.map(lambda x: x.astype(jnp.float32), p)  # None stays None
        update = shared.update_from_signs(spec, signs.reshape(g.shape), out_dtype, p, s)
        return Stepped(update, *stored, skipped)

    codes, scales, sums, of_tiles, skipped = _moments(call)
    ratio = shared.ratio(sums, s) if spec.rule.trust_ratio else jnp.ones((), jnp.float32)
    out = _apply(call, g, p, codes, scales, s, ratio, of_tiles)
    return Stepped(out, codes, scales, skipped)


def moments(spec: Spec, g, p, slots, absmaxes, s, dither, *, interpret=None):
    """The new state of a leaf, of which other devices have parts.

    Arguments of `xla.moments`.

    Returns:
      `(slots, absmaxes, sums, of_tiles, skipped)`: as of `xla.moments`, with what the kernel knows
      of its tiles, which spares `apply` a read.
    """
    leaf, s = _Leaf.of(spec, g, p, slots, absmaxes), s.astype(jnp.float32).prepared()
    return _moments(_Call(spec, leaf, _Hyper.of(s, dither), interpret))


def apply(spec: Spec, g, p, slots, absmaxes, s, ratio, of_tiles, *, interpret=None):
    """What a leaf makes of its new state: see `xla.apply`."""
    leaf, s = _Leaf.of(spec, g, p, (), ()), s.astype(jnp.float32).prepared()
    call = _Call(spec, leaf, _Hyper.of(s, None), interpret)
    return _apply(call, g, p, slots, absmaxes, s, ratio, of_tiles)


def unknown_tiles(spec: Spec, g, p, slots):
    """In place of what `moments` knows of its tiles: that it knows nothing."""
    leaf = _Leaf.of(spec, g, p, (), ())._replace(shape=slots[0].shape)
    return jnp.full((_cut(spec, leaf).tiles, 3), jnp.inf)


def _in_one_pass(call):
    """`(parameters, (codes, scales), skipped)` of a step that needs no norm."""
    leaf, count = call.leaf, call.spec.count_skipped
    written = dict(p=leaf.p, state=leaf.state)
    name = f"{call.spec.rule.name}_step"
    _, written, sums = call(name, bodies.step_body, dict(g=leaf.g), written, sums=int(count))
    return written["p"], leaf.stored(written["state"]), _skipped(call, sums)


def _signs(call):
    """`(signs, (codes, scales), skipped)` of a step that goes by signs."""
    leaf, count = call.leaf, call.spec.count_skipped
    read = dict(g=leaf.g, p=leaf.p if call.spec.decay == "coupled" else None)
    out = dict(signs=jax.ShapeDtypeStruct(leaf.rows_shape, jnp.int8))
    name, written = f"{call.spec.rule.name}_signs", dict(state=leaf.state)
    out, written, sums = call(name, bodies.signs_body, read, written, out, sums=int(count))
    return out["signs"], leaf.stored(written["state"]), _skipped(call, sums)


def _new_state(call):
    """`((codes, scales), sums)` of the first pass of a step that goes by its new slots."""
    leaf = call.leaf
    read, written = dict(g=leaf.g, p=leaf.p), dict(state=leaf.state)
    name = f"{call.spec.rule.name}_moments"
    _, written, sums = call(name, bodies.moments_body, read, written, sums=3)
    return leaf.stored(written["state"]), sums


def _skipped(call, sums):
    return sums.total[bodies.SKIPPED] if call.spec.count_skipped else None


def _moments(call):
    stored, sums = _new_state(call)
    layers = call.layers
    total = sums.total if layers is None else sums.of_layers(layers)
    total = jnp.stack([total[..., bodies.PARAM], total[..., bodies.UPDATE]], -1)
    return *stored, total, sums.of_tiles, _skipped(call, sums)


def _apply(call, g, p, codes, scales, s, ratio, of_tiles):
    spec, leaf = call.spec, call.leaf
    s = s._replace(step_size=s.step_size * ratio)
    if spec.emit == "params":
        read = dict(g=leaf.g, sums=Small(of_tiles), state=leaf.rows(codes, scales))
        call = call._replace(hyper=_Hyper.of(s, None))
        _, written, _ = call(f"{spec.rule.name}_apply", bodies.apply_body, read, dict(p=leaf.p))
        return written["p"].reshape(p.shape)
    # XLA fuses this pass with whatever applies the update, and moves as little for it.
    out_dtype = promote(*(x.dtype for x in (g, p) if x is not None))
    update = _update(spec, g.astype(jnp.float32), p, codes, scales, s)
    return update.astype(out_dtype)


def _update(spec, g, p, codes, scales, s):
    """The update from new slots, by XLA, in float32."""
    p = jax.tree.map(lambda x: x.astype(jnp.float32), p)  # None stays None
    usable = shared.usable(spec, shared.gradient(spec, g, p, s))
    direction = shared.direction_from_new(spec, codes, scales, usable, p, s, jnp.float32)
    return shared.by_layer(s.step_size, direction) * direction


def step_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, dither, *, interpret=None):
    """The step of a piece of a leaf: arguments and results of `xla.step_piece`."""
    p = target if spec.emit == "params" else p
    piece, call, s = _piece(spec, g, p, start, slots, absmaxes, s, dither, interpret)
    if spec.emit == "params":
        new_p, stored, skipped = _in_one_pass(call)
        return Stepped(new_p.reshape(target.shape), *stored, skipped)
    if spec.rule.from_old:
        signs, stored, skipped = _signs(call)
        p = jax.tree.map(lambda x: x.astype(jnp.float32), piece.of(p))  # None stays None
        if p is not None:
            signs = signs.reshape(p.shape)  # of a ragged leaf, parts are flat
        update = shared.update_from_signs(spec, signs, target.dtype, p, s)
        return Stepped(piece.put(target, update), *stored, skipped)
    stored, sums = _new_state(call)
    update = _update_of_piece(spec, piece, g, p, *stored, s)
    return Stepped(piece.put(target, update.astype(target.dtype)), *stored, _skipped(call, sums))


def moments_piece(spec: Spec, g, p, start, slots, absmaxes, s, dither, *, interpret=None):
    """The new state of a piece: arguments and results of `xla.moments_piece`."""
    _, call, _ = _piece(spec, g, p, start, slots, absmaxes, s, dither, interpret)
    stored, sums = _new_state(call)
    grains = sums.of_grains()
    of_grains = jnp.stack([grains[:, bodies.PARAM], grains[:, bodies.UPDATE]], 1)
    return *stored, of_grains, _skipped(call, sums)


def apply_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, ratio, *, interpret=None):
    """Parameters or updates of a piece: arguments and result of `xla.apply_piece`."""
    p = target if spec.emit == "params" else p
    s = s._replace(step_size=s.step_size * ratio)
    piece, call, s = _piece(spec, g, p, start, slots, absmaxes, s, None, interpret)
    if spec.emit == "params":
        leaf = call.leaf
        read = dict(g=leaf.g, sums=None, state=leaf.rows(slots, absmaxes))
        _, written, _ = call(f"{spec.rule.name}_apply", bodies.apply_body, read, dict(p=leaf.p))
        return written["p"].reshape(target.shape)
    update = _update_of_piece(spec, piece, g, p, slots, absmaxes, s)
    return piece.put(target, update.astype(target.dtype))


def _update_of_piece(spec, piece, g, p, slots, absmaxes, s):
    """As `_update`, for gradient and parameter of the whole leaf."""
    g = piece.of(g).astype(jnp.float32)
    s = s._replace(
        step_size=piece.by_rows(s.step_size),
        grad_scale=None if s.grad_scale is None else piece.by_rows(s.grad_scale),
    )
    # In the shape of the leaf's view, of which scales are in rows, too.
    slots = tuple(x.reshape(g.shape) for x in slots)
    absmaxes = tuple(a.reshape(absmax_shape(g.shape, spec.block_size)) for a in absmaxes)
    return _update(spec, g, piece.of(p), slots, absmaxes, s)


def _piece(spec, g, p, start, slots, absmaxes, s, dither, interpret):
    """`(piece, call, scalars)` for the kernels of a piece."""
    piece = Piece(start, slots[0].size, g.size, spec.block_size)
    leaf = _Leaf.of(spec, g, p, slots, absmaxes)
    leaf = leaf._replace(g=Whole(leaf.g), p=None if p is None else Whole(leaf.p))
    s = s.astype(jnp.float32).prepared()
    return piece, _Call(spec, leaf, _Hyper.of(s, dither), interpret, piece), s


# ----------------------------------------------------------------------------- around a kernel


def _per_thread(spec, dtypes):
    # With more elements there is more to do while a thread waits, and room for fewer threads. As
    # many as leave registers enough, 32 or 16; `python -m tests.gpu` times the alternatives.
    slots = sum(2 if codec.name == "dynamic" else 1 for codec in spec.codecs)
    if slots == 2 and any(jnp.dtype(dtype).itemsize > 2 for dtype in dtypes):
        slots = 3  # float32 gradients and parameters take twice the registers
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

    @property
    def rows_shape(self):
        """The shape of its elements as rows of blocks, or flat; of a piece, those of the piece."""
        size = math.prod(self.shape)
        return (
            (size // self.block_size, self.block_size) if size % self.block_size == 0 else (size,)
        )

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
    return cut(math.prod(leaf.shape), leaf.block_size, dtypes, _per_thread(spec, dtypes))


class _Hyper(NamedTuple):
    """The scalars of a step as kernels get them, in small arrays."""

    floats: Any
    by_layer: Any
    """Those of which every layer of a stack has its own, `(scalars, layers)`; None if there are
    none."""
    dither: Any
    """The numbers of a `Dither`; None where nothing is rounded."""
    place: Any
    names: tuple[tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, s, dither):
        given = {name: value for name, value in s._asdict().items() if value is not None}
        for_all = {name: value for name, value in given.items() if not value.ndim}
        by_layer = {name: value for name, value in given.items() if value.ndim}
        # Kernels read four numbers at once, and are not to read beyond the last.
        floats = jnp.stack([*for_all.values(), *[jnp.float32(0)] * (-len(for_all) % 4)])
        return cls(
            floats,
            jnp.stack(list(by_layer.values())) if by_layer else None,
            None if dither is None else jnp.stack([dither.step, dither.leaf, *dither.scrambling]),
            None if dither is None or dither.place is None else _as_arrays(dither.place),
            (tuple(for_all), tuple(by_layer)),
        )

    def scalars(self, floats, by_layer, layer):
        """`rules.Scalars` of a layer, from references to the arrays."""
        for_all, own = self.names
        values = {name: floats[i] for i, name in enumerate(for_all)}
        return rules.Scalars(**values, **{name: by_layer[i, layer] for i, name in enumerate(own)})


def _as_arrays(place):
    return jax.tree.map(lambda x: x.reshape(1), place)


def _dither(small):
    """A `Dither` from references to the arrays of a `_Hyper`."""
    if small["dither"] is None:
        return None
    step, leaf, *scrambling = (small["dither"][i] for i in range(small["dither"].shape[0]))
    place = jax.tree.map(lambda ref: ref[0], small["place"])
    return Dither(step, leaf, tuple(scrambling), place)


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
        spec = spec._replace(codecs=tuple(map(for_kernel, spec.codecs)))

        def with_scalars(tile, small, written, out, sums):
            layer = None if hyper.by_layer is None else tile.layer(self.layers)
            s = hyper.scalars(small["floats"], small["by_layer"], layer)
            body(spec, tile, s, _dither(small), small["read"], written, out, sums)

        small = dict(
            floats=hyper.floats, by_layer=hyper.by_layer, dither=hyper.dither, place=hyper.place
        )
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
