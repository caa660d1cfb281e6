"""The step of one leaf as kernels, whatever compiles them.

A step without a trust ratio is one kernel, one of LAMB two: the first writes the new moments and
sums up what the norms need, the second rebuilds the direction from the new codes, which moves fewer
bytes than to keep it. State and parameters are written in place, through references.

What happens between reading and writing is that of `arithmetic`, as everywhere.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic import step as shared
from pallas_kernels.arithmetic.blocks import absmax_shape, as_rows
from pallas_kernels.leaf import Applied, Halfway, Leaf, Stepped, StoredSlot
from pallas_kernels.tiled import bodies
from pallas_kernels.tiled.ladders import for_kernel
from pallas_kernels.tiled.rows import TILE, why_not_array
from pallas_kernels.tiled.running import Backend, Small, Whole


def why_not(leaf: Leaf, block_sizes: tuple[int, ...]) -> str | None:
    """Why there is no kernel for a leaf, of kernels for these block sizes; None if there is."""
    if not leaf.coded:
        return "the kernels are for 8-bit state"
    others = () if leaf.param is None else (leaf.param.dtype,)
    block_size = leaf.spec.block_size
    if reason := why_not_array(leaf.g, block_size, *others, block_sizes=block_sizes):
        return reason
    if leaf.spec.stacked and leaf.g.size // max(leaf.g.shape[0], 1) % TILE:
        return f"layers of a stack must have a multiple of {TILE} elements"
    return None


def step(backend: Backend, leaf: Leaf) -> Stepped:
    """One step of one leaf, or of a piece of one by a rule without a trust ratio."""
    call = _Call.of(backend, leaf)
    rule, emit = leaf.spec.rule, leaf.spec.emit
    if rule.ratio:
        halfway = _moments(call)
        ratio = shared.ratio(jnp.sum(halfway.sums, axis=0), call.s)
        out = _apply(call, leaf, halfway.slots, ratio, halfway.tiles)
        return Stepped(out.out, halfway.slots, halfway.skipped, out.residual)
    if emit == "params":
        return _in_one_pass(call)
    if rule.form == "sign":
        signs, slots, skipped = _signs(call)
        p = _float32(leaf.here(leaf.p))
        signs = signs.reshape(leaf.g.shape if leaf.start is None else _view_shape(leaf))
        # The rest of the step is left to XLA, which fuses it with whatever applies the update.
        update = shared.update_from_signs(leaf.spec, signs, leaf.out_dtype, p, call.s)
    else:
        slots, sums = _new_state(call)
        skipped = _skipped(call, sums)
        update = _update(leaf.replace(slots=slots), jnp.ones((), jnp.float32))
    return Stepped(leaf.whole(update), slots, skipped)


def moments(backend: Backend, leaf: Leaf) -> Halfway:
    """The new state of a leaf of which other devices have parts, or of a piece."""
    return _moments(_Call.of(backend, leaf))


def apply(backend: Backend, leaf: Leaf, ratio: Any, tiles: Any = None) -> Applied:
    """What a leaf makes of its new state, which is in its slots: updates or parameters.

    Args:
      backend: What compiles the kernels.
      leaf: `Leaf`.
      ratio: Its trust ratio.
      tiles: `Halfway.tiles`; None if nothing is known.
    """
    return _apply(_Call.of(backend, leaf), leaf, leaf.slots, ratio, tiles)


def adopted(backend: Backend, leaf: Leaf, halfway: Halfway) -> Halfway:
    """What another implementation made of a leaf, in the form of `moments`.

    Nothing is known of tiles then, and all sums are in the first part.
    """
    if leaf.start is not None:
        return halfway
    cut, sums = _Call.of(backend, leaf).cut, halfway.sums
    if not leaf.spec.stacked:
        sums = jnp.pad(sums, ((0, cut.parts - 1), (0, 0)))
    return halfway._replace(sums=sums, tiles=jnp.full((cut.tiles, 3), jnp.inf))


# ----------------------------------------------------------------------------------- the kernels


def _in_one_pass(call):
    rows, count = call.rows, call.spec.count_skipped
    written = dict(p=rows.p, residual=rows.residual, state=rows.slots)
    name = f"{call.spec.rule.name}_step"
    _, written, sums = call(name, bodies.step_body, dict(g=rows.g), written, sums=int(count))
    out, residual = call.applied(written)
    return Stepped(out, call.stored(written["state"]), _skipped(call, sums), residual)


def _signs(call):
    """`(signs, slots, skipped)` of a step of signs."""
    rows, count = call.rows, call.spec.count_skipped
    read = dict(g=rows.g, p=rows.p if call.spec.decay == "coupled" else None)
    out = dict(signs=jax.ShapeDtypeStruct(_rows_shape(call.leaf), jnp.int8))
    name, written = f"{call.spec.rule.name}_signs", dict(state=rows.slots)
    out, written, sums = call(name, bodies.signs_body, read, written, out, sums=int(count))
    return out["signs"], call.stored(written["state"]), _skipped(call, sums)


def _new_state(call):
    """`(slots, sums)` of the first pass of a step that goes by its new slots."""
    rows, spec = call.rows, call.spec
    needs_p = spec.rule.ratio or spec.decay == "coupled"
    read = dict(
        g=rows.g,
        p=rows.p if needs_p else None,
        residual=rows.residual if spec.decay == "coupled" else None,
    )
    written = dict(state=rows.slots)
    name, count = f"{spec.rule.name}_moments", 3 if spec.rule.ratio else int(spec.count_skipped)
    _, written, sums = call(name, bodies.moments_body, read, written, sums=count)
    return call.stored(written["state"]), sums


def _skipped(call, sums):
    return sums.total[bodies.SKIPPED] if call.spec.count_skipped else None


def _moments(call):
    slots, sums = _new_state(call)
    if call.leaf.start is not None:
        parts, tiles = sums.of_grains(), None
    else:
        layers, tiles = call.layers, sums.of_tiles
        parts = sums.parts if layers is None else sums.of_layers(layers)[None]
    squares = jnp.stack([parts[..., bodies.PARAM], parts[..., bodies.UPDATE]], -1)
    return Halfway(slots, squares, tiles, _skipped(call, sums))


def _apply(call, leaf, slots, ratio, tiles):
    leaf = leaf.replace(slots=slots)
    if leaf.spec.emit != "params":
        # XLA fuses this pass with whatever applies the update, and moves as little for it.
        return Applied(leaf.whole(_update(leaf, ratio)))
    s = leaf.scalars
    leaf = leaf.replace(scalars=s._replace(step_size=s.step_size * ratio))
    if leaf.spec.param_rounding == "nearest":
        leaf = leaf.replace(dither=None)
    call = _Call.of(call.backend, leaf)
    sums = None if tiles is None else Small(tiles)
    read = dict(g=call.rows.g, sums=sums, state=call.rows.slots)
    name = f"{leaf.spec.rule.name}_apply"
    written = dict(p=call.rows.p, residual=call.rows.residual)
    _, written, _ = call(name, bodies.apply_body, read, written)
    return call.applied(written)


# ----------------------------------------------------------------------- what is left to XLA


def _update(leaf, ratio):
    """The update from new slots, by XLA, in float32 until it is rounded to its dtype."""
    spec, s = leaf.spec, _scalars(leaf)
    s = s._replace(step_size=s.step_size * ratio)
    g, p, slots = leaf.here(leaf.g), _float32(leaf.here(leaf.param)), leaf.slots
    if (piece := leaf.piece) is not None:
        s = s._replace(
            step_size=piece.by_rows(s.step_size),
            grad_scale=None if s.grad_scale is None else piece.by_rows(s.grad_scale),
        )
        scales_shape = absmax_shape(g.shape, spec.block_size)
        slots = tuple(
            StoredSlot(x.values.reshape(g.shape), x.absmax.reshape(scales_shape)) for x in slots
        )
    g = shared.gradient(spec, _float32(g), p, s)
    direction = shared.direction(spec, g, shared.load_new(spec, slots, s, jnp.float32), s)
    direction = shared.decayed(spec, direction, shared.usable(spec, g), p, s)
    return (shared.by_layer(s.step_size, direction) * direction).astype(leaf.out_dtype)


def _view_shape(leaf):
    """The shape in which `Leaf.here` shows a piece."""
    block = leaf.spec.block_size
    return (leaf.size // block, block) if leaf.g.size % block == 0 else (leaf.size,)


def _float32(x):
    return None if x is None else x.astype(jnp.float32)


def _scalars(leaf):
    return leaf.scalars.astype(jnp.float32).prepared(leaf.spec.rule)


# ----------------------------------------------------------------------------- around a kernel


class _Rows(NamedTuple):
    """The arrays of a leaf as rows of blocks, or flat where its last block is short.

    Of a piece, gradient and parameters are those of the whole leaf, marked as `Whole`.
    """

    g: Any
    p: Any
    residual: Any
    slots: tuple[StoredSlot, ...]

    @classmethod
    def of(cls, leaf):
        block = leaf.spec.block_size

        def rows(x):
            if x is None:
                return None
            return as_rows(x, block) if leaf.start is None else Whole(as_rows(x, block))

        slots = (StoredSlot(as_rows(x.values, block), x.absmax.reshape(-1)) for x in leaf.slots)
        residual = None if leaf.residual is None else as_rows(leaf.residual, block)
        return cls(rows(leaf.g), rows(leaf.param), residual, tuple(slots))


def _rows_shape(leaf):
    """The shape of what is stepped as rows of blocks, or flat."""
    block = leaf.spec.block_size
    return (leaf.size // block, block) if leaf.size % block == 0 else (leaf.size,)


class _Hyper(NamedTuple):
    """The scalars of a step as kernels get them, in small arrays."""

    floats: Any
    by_layer: Any
    """Those of which every layer of a stack has its own, `(scalars, layers)`; None if there are
    none."""
    dither: Any
    """The numbers of a `Dither`, in arrays; None where nothing is rounded."""
    place: Any
    """Where a shard lies, as arrays; None where there is none."""
    of_layers: tuple[bool, ...]
    tree: Any
    """The structure of `Scalars`, and which of its leaves are in `by_layer`."""

    @classmethod
    def of(cls, s, dither):
        values, tree = jax.tree.flatten(s)
        for_all = [x for x in values if not x.ndim]
        by_layer = [x for x in values if x.ndim]
        # Kernels read four numbers at once, and are not to read beyond the last.
        floats = jnp.stack([*for_all, *[jnp.float32(0)] * (-len(for_all) % 4)])
        return cls(
            floats,
            jnp.stack(by_layer) if by_layer else None,
            None if dither is None else _numbers(dither),
            None if dither is None else jax.tree.map(lambda x: x.reshape(1), dither.place),
            tuple(bool(x.ndim) for x in values),
            tree,
        )

    def scalars(self, small, layer):
        """`Scalars` of a layer, from references to the arrays."""
        numbers = {True: 0, False: 0}
        values = []
        for own in self.of_layers:
            i = numbers[own]
            values.append(small["by_layer"][i, layer] if own else small["floats"][i])
            numbers[own] += 1
        return self.tree.unflatten(values)


def _numbers(dither):
    # Every number by itself: it would take a launch to put together what differs between leaves.
    return jax.tree.map(lambda x: x.reshape(1), dither._replace(place=None))


def _dither(small):
    """A `Dither` from references to the arrays of a `_Hyper`."""
    if small["dither"] is None:
        return None
    numbers = jax.tree.map(lambda ref: ref[0], small["dither"])
    return numbers._replace(place=jax.tree.map(lambda ref: ref[0], small["place"]))


class _Call(NamedTuple):
    """Runs a kernel body over a leaf."""

    leaf: Leaf
    rows: _Rows
    s: Any
    """The scalars, in float32 and prepared."""
    backend: Backend

    @classmethod
    def of(cls, backend, leaf):
        return cls(leaf, _Rows.of(leaf), _scalars(leaf), backend)

    @property
    def spec(self):
        """The static choices."""
        return self.leaf.spec

    @property
    def layers(self):
        """How many layers are stacked in the leaf; None if it is no stack."""
        return self.leaf.g.shape[0] if self.spec.stacked else None

    @property
    def cut(self):
        """How what is stepped is cut into tiles."""
        leaf = self.leaf
        dtypes = [x.dtype for x in (leaf.g, leaf.param) if x is not None]
        return self.backend.cut(leaf.size, self.spec.block_size, dtypes, self.spec)

    def stored(self, slots):
        """Slots that were written, in their own shapes."""
        return jax.tree.map(lambda x, old: x.reshape(old.shape), slots, self.leaf.slots)

    def applied(self, written):
        """Parameters and their residual that were written, in their own shapes."""
        out, residual = written["p"], written["residual"]
        if residual is not None:
            residual = residual.reshape(self.leaf.residual.shape)
        return Applied(out.reshape(self.leaf.param.shape), residual)

    def __call__(self, name, body, read, written, out=None, sums=0) -> tuple[Any, Any, Any]:
        hyper = _Hyper.of(self.s, self.leaf.dither)
        spec = self.spec._replace(codecs=tuple(map(for_kernel, self.spec.codecs)))

        def with_scalars(tile, small, written, out, sums):
            layer = None if hyper.by_layer is None else tile.layer(self.layers)
            s = hyper.scalars(small, layer)
            body(bodies.Context(spec, tile, s, _dither(small)), small["read"], written, out, sums)

        small = dict(
            floats=hyper.floats, by_layer=hyper.by_layer, dither=hyper.dither, place=hyper.place
        )
        return self.backend.run(
            name,
            with_scalars,
            self.cut,
            dict(jax.tree.map(Small, small), read=read),
            written,
            out or {},
            sums=sums,
            piece=self.leaf.piece,
            late=self.spec.late,
        )
