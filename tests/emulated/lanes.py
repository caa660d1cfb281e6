"""Threads as lanes of arrays: a kernel's instructions are run for some blocks of threads at once.

Threads that are at different places are run by the smallest place first, which brings them together
where a compiler means them to meet. Instructions of whole warps refuse a warp of which some threads
are elsewhere, and so do barriers: nothing here is made to wait for its partners.
"""

import numpy as np

from tests.emulated.faults import Fault
from tests.emulated.memory import Access, Memory

WARP = 32
_TURNS = 10**5
"""After so many branches and barriers a kernel is taken to go on for ever."""


class Lanes:
    """The state of some blocks of threads, one lane a thread.

    Registers hold raw bits: an unsigned array (bool for predicates) with an element a lane, or with
    one for all of them.
    """

    def __init__(self, launch, blocks):
        """Of the blocks in a range; see `launch.Launch`."""
        threads, count = launch.threads, len(blocks) * launch.threads
        self.launch, self.count = launch, count
        self.tid = np.tile(np.arange(threads), len(blocks))
        self.block = np.repeat(np.arange(blocks.start, blocks.stop), threads)
        self.shared = Memory()
        bases = [
            self.shared.add(
                f"shared memory of block {b}", np.zeros(launch.shared, np.uint8),
                writable=True, initialised=False,
            )
            for b in blocks
        ]  # fmt: skip
        self.shared.close()
        self.shared_base = np.repeat(bases, threads)
        self.registers = [None] * len(launch.kernel.registers)
        self._partly = {}
        """Of registers that not all lanes have written: which have."""
        self.places = np.zeros(count, np.int64)
        self.left, self.waiting = np.zeros(count, bool), np.zeros(count, bool)
        self.barrier = np.zeros(count, np.int64)
        self.passed = np.zeros(count, np.int64)
        """Barriers that each lane has passed."""
        self.place = 0
        """The instruction that is run."""

    def run(self, steps, labels):
        """Runs all lanes to their end.

        Args:
          steps: For each instruction a function of the lanes, and whether it moves lanes.
          labels: Places at which lanes may come together.
        """
        for _ in range(_TURNS):
            if self.left.all():
                return
            ready = ~(self.left | self.waiting)
            if not ready.any():
                raise Fault("waits for ever at a barrier", int(np.flatnonzero(self.waiting)[0]))
            place = self.places[ready].min()
            self.only(ready & (self.places == place))
            self._ahead(steps, labels, int(place))
        raise Fault("does not come to an end", int(np.flatnonzero(~self.left)[0]))

    def _ahead(self, steps, labels, place):
        """Runs the lanes of the mask until they may part or meet others."""
        while True:
            self.place = place
            step, moves = steps[place]
            place += 1
            if moves:
                self.places[self.mask] = place
            step(self)
            if moves:
                return
            if place in labels and not self.all:
                self.places[self.mask] = place
                return

    def only(self, mask):
        """Lets instructions work on the lanes of a mask."""
        self.mask, self.all = mask, bool(mask.all())
        self.at = np.flatnonzero(mask)

    def read(self, number):
        """What a register holds."""
        value = self.registers[number]
        if value is None:
            raise Fault("a register that was never written is read", int(self.at[0]))
        if (written := self._partly.get(number)) is not None and (self.mask & ~written).any():
            raise Fault(
                "a register that was never written is read",
                int(np.flatnonzero(self.mask & ~written)[0]),
            )
        return value

    def write(self, number, value):
        """Gives a register another value in the lanes of the mask."""
        if self.all:
            self.registers[number] = value
            self._partly.pop(number, None)
            return
        old = self.registers[number]
        if old is None:
            old, self._partly[number] = np.zeros(self.count, value.dtype), self.mask
        elif number in self._partly:
            self._partly[number] = self._partly[number] | self.mask
        self.registers[number] = np.where(self.mask, value, old)

    def each(self, value):
        """A value of the lanes of the mask, as an array with an element for each of these."""
        return np.broadcast_to(value, self.count)[self.at]

    def spread(self, value):
        """The inverse of `each`, with zeros in other lanes."""
        if self.all:
            return value
        whole = np.zeros(self.count, value.dtype)
        whole[self.at] = value
        return whole

    def memory(self, in_shared, addresses):
        """`(memory, addresses in it)` for addresses of the lanes of the mask."""
        if in_shared:
            return self.shared, self.shared_base[self.at] + addresses
        return self.launch.memory, addresses

    def access(self):
        """The lanes of the mask as who makes an access to memory."""
        threads = self.block[self.at] * self.launch.threads + self.tid[self.at]
        return Access(threads, (self.block[self.at] << 32) | self.passed[self.at])

    def whole_warps(self):
        """Refuses a warp of which only a part is here."""
        warps = self.mask.reshape(-1, WARP)
        parted = warps.any(1) != warps.all(1)
        if parted.any():
            raise Fault(
                "an instruction of whole warps, and threads of its warp are elsewhere",
                int(np.flatnonzero(parted)[0]) * WARP,
            )

    def arrive(self, number, expected):
        """Waits at a barrier for so many threads of the block."""
        self.whole_warps()
        self.waiting |= self.mask
        self.barrier[self.at] = self.each(number)
        key = self.block * 16 + self.barrier
        places, counts = np.unique(key[self.waiting], return_counts=True)
        done = self.waiting & np.isin(key, places[counts >= expected])
        self.waiting &= ~done
        self.passed[done] += 1

    def who(self, lane):
        """A lane in words."""
        return f"thread {self.tid[lane]} of block {self.block[lane]}"
