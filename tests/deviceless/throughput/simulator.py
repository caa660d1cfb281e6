"""A simulator of multiprocessors that run one kernel, from one event to the next.

Schedulers issue the instructions of their warps in order, as the control codes of the assembler
say: by stalls, and six scoreboards a warp. Behind them are the pipes, the barriers of a block, and
main memory: one queue and a fixed latency, for a few multiprocessors that share their part of its
bandwidth. A block of threads that ends makes room for the next one.

Not in it, so a GPU is slower if anything: the cache of instructions, banks of registers, and what
the order of addresses means to main memory.
"""

import heapq
import random
from typing import Any, NamedTuple

from tests.deviceless.throughput.gpus import ISSUED
from tests.deviceless.throughput.hardware import NEVER, Block, Memory, Scheduler, Shared, Warp
from tests.deviceless.throughput.pipes import Pipe
from tests.deviceless.throughput.programs import Kind

# Cycles; assumed, as those of `hardware`.
_READ = 8  # until the operands of an instruction are read
_BARRIER = 16  # until warps go on
_STAGGER, _LAUNCH = 1500, 150  # between the first blocks; between a block and the next one

_SETTLED = 1 / 4  # of all blocks: those that end before it are not counted
_ISSUES = 10**6
"""Instructions of warps in a run, which then takes two seconds."""
_FEWEST = 12
"""Rounds."""


class Simulated(NamedTuple):
    """What came of it."""

    cycles: float
    """Of a multiprocessor, for each block of threads."""
    issued: float
    """Instructions of warps in a cycle."""


def simulate(steps, machine, multiprocessors=4, rounds=None, seeds=(1, 2)):
    """Runs a kernel in blocks of as many warps as there are schedulers.

    Args:
      steps: From `programs.program`.
      machine: `hardware.Machine`.
      multiprocessors: How many there are. One alone, or two, fall into step with their memory.
      rounds: How many blocks run in each place for one; None for as many as take `_ISSUES`.
      seeds: Of when the first blocks begin. What nothing limits but how its few blocks follow one
        another differs by a tenth from one to the next, everything else by 1 %.

    Returns:
      The mean `Simulated`.
    """
    if rounds is None:
        of_round = len(steps) * ISSUED * machine.blocks * multiprocessors
        rounds = max(_FEWEST, _ISSUES // of_round)
    runs = [_Simulation(steps, machine, multiprocessors, rounds, x).run() for x in seeds]
    return Simulated(*(sum(x) / len(runs) for x in zip(*runs, strict=True)))


class _Simulation:
    def __init__(self, steps, machine, multiprocessors, rounds, seed):
        self.steps, self.multiprocessors = steps, multiprocessors
        self.places = machine.blocks * multiprocessors
        self.total = self.places * rounds
        self.events: list[Any] = []
        self.ended: list[int] = []
        self.started = self.issued = 0
        memory = Memory(machine.latency, machine.bandwidth * multiprocessors)
        lite = 0 if machine.halves == 2 else NEVER
        self.schedulers: list[Scheduler] = []
        for _ in range(multiprocessors):
            shared = Shared(memory)
            for _ in range(ISSUED):
                self.schedulers.append(Scheduler(shared, len(self.schedulers), lite))
        self._begin(machine.blocks, random.Random(seed))

    def _begin(self, blocks, draw):
        for _ in range(blocks):
            for first in range(0, len(self.schedulers), ISSUED):
                block = Block()
                for scheduler in self.schedulers[first : first + ISSUED]:
                    warp = Warp(block, scheduler)
                    block.warps.append(warp)
                    scheduler.warps.append(warp)
                self._start(block, draw.randrange(_STAGGER * blocks))

    def _start(self, block, t):
        self.started += 1
        block.left, block.arrived = len(block.warps), 0
        for warp in block.warps:
            warp.at, warp.number, warp.boards = 0, self.started, [0] * 6
            warp.pipe, warp.ready = self.steps[0].pipe, t
            self._wake(warp.scheduler, t)

    def _wake(self, scheduler, t):
        if t < scheduler.next:
            scheduler.next = t
            heapq.heappush(self.events, (t, scheduler.number))

    def run(self):
        t = 0
        while len(self.ended) < self.total:
            t, number = heapq.heappop(self.events)
            scheduler = self.schedulers[number]
            if scheduler.next != t:
                continue  # it was woken earlier
            scheduler.next = NEVER
            warp, soonest = scheduler.choose(t)
            if warp is not None:
                self._issue(scheduler, warp, t)
                soonest = t + 1
            self._wake(scheduler, soonest)
        # The last blocks have less and less company.
        first, last = int(self.total * _SETTLED), self.total - self.places
        cycles = (self.ended[last - 1] - self.ended[first - 1]) / (last - first)
        return Simulated(cycles * self.multiprocessors, self.issued / t / self.multiprocessors)

    def _issue(self, scheduler, warp, t):
        step = self.steps[warp.at]
        scheduler.last = warp
        self.issued += 1
        warp.at += 1
        done = scheduler.use(step, t)
        boards, ready = warp.boards, t + step.stall
        if step.writing is not None and done > boards[step.writing]:
            boards[step.writing] = done
        if step.reading is not None:
            read = _READ + (int(scheduler.shared.lsu) if step.pipe == Pipe.LSU else t)
            boards[step.reading] = max(boards[step.reading], read)
        if warp.at == len(self.steps):
            self._end(warp, t)
            return
        following = self.steps[warp.at]
        warp.pipe = following.pipe
        for board in following.waits:
            if boards[board] > ready:
                ready = boards[board]
        warp.ready = ready
        if step.kind == Kind.BARRIER:
            self._arrive(warp, t)

    def _arrive(self, warp, t):
        block = warp.block
        warp.after, warp.ready = warp.ready, NEVER
        block.arrived += 1
        if block.arrived == len(block.warps):
            block.arrived = 0
            for other in block.warps:
                other.ready = max(other.after, t + _BARRIER)
                self._wake(other.scheduler, other.ready)

    def _end(self, warp, t):
        warp.ready = NEVER
        warp.block.left -= 1
        if not warp.block.left:
            self.ended.append(t)
            if self.started < self.total:
                self._start(warp.block, t + _LAUNCH)
