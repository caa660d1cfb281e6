"""Pages: how much of a paged state is on the device at a time, and in which order.

A page is a group of leaves, or a piece of a leaf that is larger than a page. The order depends on
sizes alone, so it is the same in every process and in every run.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.arithmetic.pieces import GRAIN, can_be_cut


class Extent(NamedTuple):
    """How much state a leaf has."""

    size: int
    """Elements of the parameter."""
    nbytes: int
    """Bytes of the state."""
    room: int
    """Bytes that it takes on the device: twice as many in float32, as XLA writes the new state
    beside the old one, where a kernel overwrites it."""
    can_be_cut: bool = True
    two_parts: bool = False
    """Whether a step in pieces has a second part, which reads the state once more."""

    def pieces(self, page_bytes):
        """Where its pieces begin and end, in grains: `[(0, 3), (3, 6), (6, 8)]`, or none if whole.

        There are as few as fit on pages, and they are of one length, because such pieces share
        their code; the last one is what is left.
        """
        if not (self.can_be_cut and can_be_cut(self.size)) or self.room <= page_bytes:
            return []
        grains = -(-self.size // GRAIN)
        # Of whole grains: the last one may be short.
        most = max(page_bytes * self.size // (self.room * GRAIN), 1)
        length = -(-grains // -(-grains // most))
        return [(begin, min(begin + length, grains)) for begin in range(0, grains, length)]


def extent_of(rule, slots, block_size, *, residual=None, stacked=False):
    """The `Extent` of a leaf, from its `StoredSlot`s, of arrays or of their forms."""
    size, coded = math.prod(slots[0].values.shape), slots[0].coded
    arrays = [residual, *(x for slot in slots for x in (slot.values, slot.absmax))]
    nbytes = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays if x is not None)
    cannot = (coded and block_size is None) or (size % (block_size or 256) and size >= 2**31)
    can = can_be_cut(size, slots[0].values.shape[0] if stacked else None) and not cannot
    room = nbytes if coded else 2 * nbytes
    return Extent(size, nbytes, room, can, two_parts=rule.ratio)


class Part(NamedTuple):
    """What a page holds of a leaf, and what is done with it."""

    leaf: int
    phase: str
    """`"whole"`; or for a piece `"step"`, or one of `"moments"` and `"apply"`."""
    begin: int = 0
    """In grains, as is `end`."""
    end: int = 0


def make(extents, page_bytes, in_flight):
    """The pages of leaves, in the order in which they are stepped.

    Pieces of one leaf cannot be fetched while others of it are stored, since they are in one
    array. So other pages come in between where there are any.

    Args:
      extents: An `Extent` for every leaf.
      page_bytes: Room for a page. A leaf that cannot be cut may be larger.
      in_flight: How many pages are on the device while one more is fetched.

    Returns:
      A tuple of pages; a page is a tuple of `Part`.
    """
    # While a page is fetched, one may still be on its way out: there are up to two more pages than
    # in flight, in the room for one more. An eighth is for what XLA cannot pack without gaps.
    page_bytes = page_bytes * (in_flight + 1) * 7 // ((in_flight + 2) * 8)
    lines: list[list[tuple[Part, ...]]] = []  # pages that have to follow one another
    group: list[Part] = []
    room = 0
    for leaf, extent in enumerate(extents):
        if pieces := extent.pieces(page_bytes):
            phases = ("moments", "apply") if extent.two_parts else ("step",)
            lines.append([(Part(leaf, phase, *piece),) for phase in phases for piece in pieces])
            continue
        if not group or extent.room > room:
            group, room = [], page_bytes
            lines.append([group])  # pyright: ignore[reportArgumentType]
        group.append(Part(leaf, "whole"))
        room -= extent.room
    return tuple(map(tuple, _spread(lines, in_flight + 1)))


def _spread(lines, distance):
    """One order of the members of all lines, with those of a line as far apart, if it can be."""
    longest = max(map(len, lines), default=0)
    if longest > 1:
        # The others are all there is to lie between those of the longest lines.
        between = sum(map(len, lines)) - sum(len(line) == longest for line in lines)
        distance = min(distance, max(between // (longest - 1), 1))
    taken, last, order = [0] * len(lines), [-distance] * len(lines), []
    for now in range(sum(map(len, lines))):
        left = {i: len(line) - taken[i] for i, line in enumerate(lines) if taken[i] < len(line)}
        apart = [i for i in left if now - last[i] >= distance]
        longest = max(left, key=lambda i: left[i])
        others = sum(left.values()) - left[longest]
        if longest in apart and others <= (left[longest] - 1) * (distance - 1):
            i = longest  # or it would be alone in the end
        else:
            i = min(apart) if apart else min(left, key=lambda i: last[i])
        order.append(lines[i][taken[i]])
        taken[i], last[i] = taken[i] + 1, now
    return order
