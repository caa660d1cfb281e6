"""The parts of a multiprocessor, in the simulator: when they are taken, and when results are there.

Times are in cycles. The widths of pipes follow from their lanes, `gpus.LANES`; the rest is assumed.
"""

import dataclasses
from typing import Any, NamedTuple

from tests.deviceless.throughput.pipes import Pipe
from tests.deviceless.throughput.programs import Kind

NEVER = float("inf")

_FMA = _ALU = 2  # that 32 threads take 16 lanes: a scheduler's part of a pipe of 64
_XU = 8  # and 4 lanes
_XU_QUEUE, _LSU_QUEUE = 8, 32  # how far ahead of itself a pipe takes instructions
_RESULT, _XU_RESULT, _LSU_RESULT = 6, 14, 24  # until a result is there
_STORED, _NEAR, _CONSTANT = 20, 60, 40
_PORT = 64  # bytes a cycle between a multiprocessor and the L2 cache


class Machine(NamedTuple):
    """A multiprocessor."""

    blocks: int
    """Blocks of threads that it holds."""
    halves: int
    """Of its FMA pipe, of 64 lanes each."""
    latency: float
    """Until a load from main memory is there, if nobody else loads."""
    bandwidth: float
    """Its part of main memory's, in bytes a cycle."""


@dataclasses.dataclass(slots=True, eq=False)
class Memory:
    """Main memory, and until when it is taken."""

    latency: float
    bandwidth: float
    until: float = 0.0


@dataclasses.dataclass(slots=True, eq=False)
class Shared:
    """What the schedulers of a multiprocessor share, and until when it is taken."""

    memory: Memory
    lsu: float = 0.0
    port: float = 0.0

    def access(self, step, t):
        """Makes an access; returns when it is done."""
        start = max(self.lsu, t)
        self.lsu = sent = start + step.cost
        if not step.bytes:
            return int(sent + (_NEAR if step.kind == Kind.NEAR else _LSU_RESULT))
        memory = self.memory
        self.port = max(self.port, start) + step.bytes / _PORT
        memory.until = max(memory.until, start) + step.bytes / memory.bandwidth
        if step.kind == Kind.STORE:
            return int(sent + _STORED)
        return int(max(memory.until, self.port) + memory.latency)


@dataclasses.dataclass(slots=True, eq=False)
class Warp:
    """A warp of a block, in its place."""

    block: "Block"
    scheduler: "Scheduler"
    number: int = 0
    """Of its block: older ones go first."""
    at: int = 0
    """Where it is in the program."""
    pipe: int = 0
    """Of its next instruction."""
    ready: Any = NEVER
    """When nothing but the pipe keeps that back."""
    after: Any = 0
    """When it goes on behind a barrier, if the others are there."""
    boards: list[int] = dataclasses.field(default_factory=list)
    """When each of its scoreboards is clear."""


@dataclasses.dataclass(slots=True, eq=False)
class Block:
    """A place for a block of threads."""

    warps: list[Warp] = dataclasses.field(default_factory=list)
    left: int = 0
    """Warps that have not ended."""
    arrived: int = 0
    """Warps at the barrier."""


@dataclasses.dataclass(slots=True, eq=False)
class Scheduler:
    """A scheduler, and until when its pipes are taken."""

    shared: Shared
    number: int
    lite: Any
    """The second half of the FMA pipe, for float32 only. Where there is none, it is never free."""
    heavy: int = 0
    alu: int = 0
    xu: int = 0
    warps: list[Warp] = dataclasses.field(default_factory=list)
    last: Warp | None = None
    """The one that issued last."""
    next: Any = NEVER
    """When to look at it again."""

    def choose(self, t):
        """The warp that issues: the last one as long as it can, else the oldest; or None.

        Returns:
          `(warp, time)`: the time when one may issue, if none can.
        """
        heavy, lite = self.heavy, self.lite
        either, both = (heavy, lite) if heavy < lite else (lite, heavy)
        xu, lsu = self.xu - _XU_QUEUE, self.shared.lsu - _LSU_QUEUE
        free = either, heavy, both, self.alu, xu, lsu, 0  # by `Pipe`
        chosen, soonest = None, NEVER
        for warp in self.warps:
            at = free[warp.pipe]
            if warp.ready > at:
                at = warp.ready
            if at > t:
                if at < soonest:
                    soonest = at
            elif warp is self.last:
                return warp, t
            elif chosen is None or warp.number < chosen.number:
                chosen = warp
        return chosen, soonest

    def use(self, step, t):
        """Takes the pipe of an instruction; returns when its result is there."""
        pipe = step.pipe
        if pipe == Pipe.FMA:
            if self.lite <= t:
                self.lite = t + _FMA
            else:
                self.heavy = t + _FMA
        elif pipe == Pipe.ALU:
            self.alu = t + _ALU
        elif pipe == Pipe.LSU:
            return self.shared.access(step, t)
        elif pipe == Pipe.XU:
            self.xu = max(self.xu, t) + _XU
            return self.xu + _XU_RESULT
        elif pipe == Pipe.HEAVY:
            self.heavy = t + _FMA
        elif pipe == Pipe.BOTH:
            self.heavy = self.lite = t + _FMA
        return t + (_CONSTANT if step.kind == Kind.CONSTANT else _RESULT)
