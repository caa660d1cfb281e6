"""A kernel as the simulator runs it."""

import enum
from typing import NamedTuple

from tests.deviceless.throughput import pipes
from tests.deviceless.throughput.gpus import WARP
from tests.deviceless.throughput.pipes import Pipe


class Kind(enum.IntEnum):
    """What an instruction does beside taking its pipe."""

    ORDINARY = 0
    LOAD = 1
    """From main memory."""
    STORE = 2
    """To main memory."""
    NEAR = 3
    """Loads what all blocks of threads read: from a cache."""
    CONSTANT = 4
    BARRIER = 5


_KINDS = {
    "LD": Kind.LOAD,
    "ST": Kind.STORE,
    "LDG": Kind.NEAR,
    "BAR": Kind.BARRIER,
    **dict.fromkeys(("LDC", "LDCU", "S2R", "S2UR", "ULDC"), Kind.CONSTANT),
}
"""Tiles are loaded and stored by generic instructions (LD, ST), the numbers of a step by LDG. STG,
by which one thread stores a sum, is ordinary."""


class Step(NamedTuple):
    """One instruction."""

    pipe: int
    kind: int
    waits: tuple[int, ...]
    """As of `sass.Scheduled`."""
    reading: int | None
    writing: int | None
    stall: int
    cost: float
    """Cycles of the LSU."""
    bytes: float
    """Of main memory, for a warp."""


def program(way, moved):
    """The `Step`s of a thread.

    Args:
      way: Its `sass.Scheduled` instructions.
      moved: Bytes that a thread moves from and to main memory. Its accesses are of some more: the
        scale of a block is read by every thread that has elements of it.
    """
    accessed = sum(x.width for x in way if _kind(x) in (Kind.LOAD, Kind.STORE))
    if not 0.6 < moved / accessed < 1.02:
        raise ValueError(
            f"A thread moves {moved:.1f} bytes, and its LD and ST, by which tiles are loaded and "
            f"stored, are of {accessed}: what else does that now?"
        )
    return [_step(x, moved / accessed * WARP) for x in way]


def _step(x, warp):
    where, kind = pipes.pipe(x.name), _kind(x)
    cost = pipes.lsu_cycles(x) if where == Pipe.LSU else 0.0
    moved = x.width * warp if kind in (Kind.LOAD, Kind.STORE) else 0.0
    return Step(int(where), int(kind), x.waits, x.reading, x.writing, max(1, x.stall), cost, moved)


def _kind(x):
    return _KINDS.get(x.name, Kind.ORDINARY)
