"""The stream of pages: from host memory through the device and back, while others are stepped.

One compiled program holds all of it, which XLA lays out in time. Left alone it would fetch every
page at once, and the whole state would be on the device. So the fetch of a page waits for the step
of the page that is `in_flight` places before it: then the next pages are under way while one is
stepped and the last one is stored.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_lamblion._paging.memory import DEVICE, HOST, move
from optax_lamblion._steps import together
from pallas_kernels import dispatch
from pallas_kernels.arithmetic.blocks import as_rows
from pallas_kernels.arithmetic.pieces import GRAIN
from pallas_kernels.arithmetic.step import ratio, sum_of_grains
from pallas_kernels.leaf import Leaf, Stepped, StoredSlot


class Sleeping(NamedTuple):
    """The state of a leaf, which is in host memory between two steps."""

    slots: tuple[StoredSlot, ...]
    residual: Any = None
    """As of `Leaf`."""


class Plan(NamedTuple):
    """The static part of a stream."""

    pages: tuple[Any, ...]
    in_flight: int


@functools.partial(jax.jit, static_argnums=0)
def run(plan: Plan, region, leaves):
    """Steps all leaves, whose state is in host memory.

    Args:
      plan: `Plan`.
      region: `regions.Region` of the leaves.
      leaves: `Leaf`.

    Returns:
      `Stepped` for every leaf, state on the host.
    """
    in_pieces = {part.leaf for page in plan.pages for part in page if part.phase != "whole"}
    streams = [
        _InPieces(leaf, region.of([i])) if i in in_pieces else _Whole(leaf, region.late)
        for i, leaf in enumerate(leaves)
    ]
    stepped = []
    for i, page in enumerate(plan.pages):
        here = [streams[part.leaf] for part in page]
        if i >= plan.in_flight:
            stored = plan.pages[i - plan.in_flight - 2] if i > plan.in_flight + 1 else ()
            _wait(
                {part.leaf: streams[part.leaf] for part in (*page, *stored)}.values(),
                stepped[i - plan.in_flight],
            )
        sources = [stream.read(part) for stream, part in zip(here, page, strict=True)]
        fetched = move(sources, DEVICE, region.late)
        if page[0].phase == "whole":
            given = [stream.leaf(state) for stream, state in zip(here, fetched, strict=True)]
            results = together.step(given, region, [part.leaf for part in page])
            done = [x.take(result) for x, result in zip(here, results, strict=True)]
        else:
            done = [here[0].step(page[0], fetched[0])]
        stepped.append([x for arrays in done for x in arrays])
    return [stream.result() for stream in streams]


def _wait(streams, stepped):
    """Lets nothing be read of the state of streams until others have stepped.

    `stepped` are arrays that are there then, and are needed for something else: without another use
    XLA drops them, and waits for nothing. Or a stream that has written its target. As something
    may be written to it again, what comes later must know of the waiting, or XLA keeps a copy.
    """
    # Whole arrays have to wait: what takes a piece of one is a transfer already. And gradients of
    # leaves in pieces, or XLA takes all pieces of them at once.
    written = [x for x in stepped if isinstance(x, _Whole | _InPieces)]
    arrays = [x for x in stepped if not isinstance(x, _Whole | _InPieces)]
    states, grads, targets, _ = lax.optimization_barrier(
        (
            [stream.state for stream in streams],
            [stream.grad for stream in streams],
            [stream.target for stream in written],
            arrays,
        )
    )
    for stream, state, grad in zip(streams, states, grads, strict=True):
        stream.state, stream.grad = state, grad
    for stream, target in zip(written, targets, strict=True):
        stream.target = target


class _Whole:
    """A leaf that is stepped whole, on its way through a step."""

    def __init__(self, leaf: Leaf, late):
        self._leaf, self._late = leaf, late
        self.state, self.grad = Sleeping(leaf.slots, leaf.residual), None
        self.target: Any = None
        self._skipped: Any = None

    def read(self, part):
        """Its state, on the host."""
        return self.state

    def leaf(self, state):
        """It, with its state on the device."""
        return self._leaf.replace(slots=state.slots, residual=state.residual)

    def take(self, stepped):
        """Takes what its step has made. Returns what is there when it is done."""
        spec, self.target, self._skipped = self._leaf.spec, stepped.out, stepped.skipped
        new = Sleeping(stepped.slots, stepped.residual)
        self.state = move(new, HOST, self._late)
        # Nothing waits for the updates of a step of signs: only their signs, a byte each, are kept
        # until XLA makes updates of them.
        left = [] if spec.rule.form == "sign" and spec.emit == "updates" else [self]
        return [*left, *jax.tree.leaves(new)]

    def result(self):
        """`Stepped`."""
        return Stepped(self.target, self.state.slots, self._skipped, self.state.residual)


class _InPieces:
    """A leaf that is stepped in pieces, on its way through a step."""

    def __init__(self, leaf: Leaf, region):
        self._leaf, self._region = leaf, region
        # As rows of blocks, which are views.
        self._block = block = leaf.spec.block_size or 256

        def rows(slot):
            absmax = None if slot.absmax is None else slot.absmax.reshape(-1)
            return StoredSlot(as_rows(slot.values, block), absmax)

        residual = None if leaf.residual is None else as_rows(leaf.residual, block)
        self.state = _as_views(Sleeping(tuple(map(rows, leaf.slots)), residual))
        self._sums: list[Any] = []
        self._skipped: list[Any] = []
        self._ratio: Any = None
        g, p, to_params = leaf.g, leaf.p, leaf.spec.emit == "params"
        out_dtype = leaf.update_dtype
        # What is written piece by piece: the parameter, or updates over a gradient of their dtype.
        over_gradient = not to_params and out_dtype == g.dtype
        self.grad = None if over_gradient else g
        self._p = None if to_params else p
        target = p if to_params else g if over_gradient else lax.empty(g.shape, out_dtype)
        self.target = _as_views(as_rows(target, block))

    def read(self, part):
        """The state of a part, as far as it is needed, on the host."""
        state = self.state
        if part.phase == "moments" and self._leaf.spec.decay != "coupled":
            state = state._replace(residual=None)
        return jax.tree.map(lambda x: lax.slice_in_dim(x, *self._range(part, x)), state)

    def step(self, part, state):
        """Steps a part, from its state on the device. Returns what is there then."""
        # What is being written is passed on as that alone.
        leaf = self._leaf.replace(
            g=self.target.reshape(self._leaf.g.shape) if self.grad is None else self.grad,
            p=self._p,
            slots=state.slots,
            residual=state.residual,
            target=self.target,
            start=jnp.int32(part.begin),
        )
        if part.phase == "apply":
            if self._ratio is None:
                layers = self._leaf.g.shape[0] if self._leaf.spec.stacked else None
                sums = sum_of_grains(jnp.concatenate(self._sums), layers)
                self._ratio = ratio(self._region.total([0], [sums])[0], leaf.scalars)
            self.target, residual = dispatch.apply(leaf, self._ratio)
            if residual is not None:
                self._store(part, Sleeping(jax.tree.map(lambda _: None, leaf.slots), residual))
            return [self, *jax.tree.leaves(residual)]
        residual = None
        if part.phase == "moments":
            stepped = dispatch.moments(leaf)
            self._sums.append(stepped.sums)
        else:
            stepped = dispatch.step(leaf)
            self.target, residual = stepped.out, stepped.residual
        self._skipped.append(stepped.skipped)
        new = Sleeping(stepped.slots, residual)
        self._store(part, new)
        return [self, *self._sums[-1:], *jax.tree.leaves(new)]

    def _store(self, part, new):
        """Writes what is new of the state of a part to the host."""

        def stored(x, piece):
            if piece is None:
                return x
            return lax.dynamic_update_slice_in_dim(
                x, piece.reshape(-1, *x.shape[1:]), self._range(part, x)[0], 0
            )

        moved = move(new, HOST, self._region.late)
        self.state = jax.tree.map(stored, self.state, moved, is_leaf=lambda x: x is None)

    def _range(self, part, x):
        """Begin and end of a part in a view of slots or scales."""
        of_elements = x.ndim == 1 and x.size == self._leaf.g.size
        unit = GRAIN if of_elements else GRAIN // self._block  # or of rows, or of scales
        return part.begin * unit, min(part.end * unit, x.shape[0])

    def result(self):
        """`Stepped`."""
        leaf, skipped = self._leaf, None
        if leaf.spec.count_skipped:
            skipped = self._region.total([0], [sum(self._skipped)])[0]
        if leaf.spec.emit == "updates":
            # Or XLA makes one pass of the last piece and of what uses the update, and a copy.
            self.target = lax.optimization_barrier(self.target)
        old = Sleeping(leaf.slots, leaf.residual)
        target, state = _as_views((self.target, self.state))
        state = jax.tree.map(lambda x, old: x.reshape(old.shape), state, old)
        return Stepped(target.reshape(leaf.g.shape), state.slots, skipped, state.residual)


def _as_views(tree):
    """Arrays in new shapes, which are not to be fused with what writes to a part of them.

    XLA's CPU compiler would copy them whole for that.
    """
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=lambda x: x)
