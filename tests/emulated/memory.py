"""Memory that knows what may be done with it: global memory, and that of blocks of threads.

Checked are bounds, alignment, stores to what is read-only, reads of what was never written, and
races: two accesses of two threads to a byte, one of them a store, that no barrier of their block
keeps in order. Two stores of the same value are none, as whatever order they come in makes no
difference.
"""

from typing import NamedTuple

import numpy as np

from tests.emulated.faults import Fault

APART = 2**40
"""Between the addresses of two buffers: what is beyond the end of one is in no other."""
_WIDEST = 32
"""Bytes of the widest access. Buffers begin at multiples of it."""
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
"""By bits."""


class Access(NamedTuple):
    """Who makes an access, and when: an array each, with an element a thread."""

    threads: np.ndarray
    """Numbers of threads."""
    times: np.ndarray
    """The number of the block, in the upper 32 bits, and how many barriers it has passed."""

    def of_bytes(self, size):
        """The same for each of `size` bytes a thread."""
        return Access(*(np.repeat(x, size) for x in self))


def _before(time, later):
    """Whether a barrier lies between an access and a later one."""
    return (time >> 32 == later >> 32) & (time < later)


_NOBODY, _SEVERAL = -1, -2


class _Races:
    """Who has touched each byte last, and when."""

    def __init__(self, size):
        self._writers, self._readers = (np.full(size, _NOBODY, np.int64) for _ in range(2))
        self._written, self._read = (np.full(size, -1, np.int64) for _ in range(2))

    def load(self, at, access):
        """Which of the bytes at `at` race with a store."""
        who, when = access.threads, access.times
        self._note_readers(at, who, when)
        writers = self._writers[at]
        return (writers >= 0) & (writers != who) & ~_before(self._written[at], when)

    def _note_readers(self, at, who, when):
        readers, read = self._readers[at], self._read[at]
        beside = (readers != _NOBODY) & (readers != who) & ~_before(read, when)
        # Readers of several blocks are at no time of one block.
        time = np.where(beside & (read >> 32 != when >> 32), -1, when)
        self._readers[at], self._read[at] = np.where(beside, _SEVERAL, who), time
        lost = self._readers[at] != who  # threads of this instruction that read the same byte
        self._read[at[lost & (self._read[at] >> 32 != when >> 32)]] = -1
        self._readers[at[lost]] = _SEVERAL

    def store(self, at, access, change):
        """Which of the bytes at `at` race. `change` is whether a store changes what is there."""
        who, when = access.threads, access.times
        writers, readers = self._writers[at], self._readers[at]
        races = change & (writers >= 0) & (writers != who) & ~_before(self._written[at], when)
        races |= (readers != _NOBODY) & (readers != who) & ~_before(self._read[at], when)
        self._writers[at], self._written[at], self._readers[at] = who, when, _NOBODY
        return races


class _Buffer(NamedTuple):
    """An array in memory."""

    name: str
    first: int
    """Where its bytes are among those of all buffers."""
    bytes: np.ndarray
    writable: bool
    initialised: bool

    @property
    def place(self):
        """It as an index."""
        return slice(self.first, self.first + self.bytes.size)


class Memory:
    """Bytes in buffers that are far apart."""

    def __init__(self):
        self._buffers, self._size = [], 0

    def add(self, name, array, *, writable, initialised=True):
        """Adds a buffer that holds an array, and returns its address."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._buffers.append(_Buffer(name, self._size, raw, writable, initialised))
        self._size += -(-raw.size // _WIDEST) * _WIDEST
        return len(self._buffers) * APART

    def close(self):
        """Makes it ready for accesses. No buffer can be added then."""
        self._data, self._known = np.zeros(self._size, np.uint8), np.zeros(self._size, bool)
        self._races = _Races(self._size)
        for x in self._buffers:
            # What is not initialised is at least no zero, which might go unseen.
            self._data[x.place] = x.bytes if x.initialised else 0xA5
            self._known[x.place] = x.initialised
        self._firsts = np.array([x.first for x in self._buffers], np.int64)
        self._sizes = np.array([x.bytes.size for x in self._buffers], np.int64)
        self._writable = np.array([x.writable for x in self._buffers], bool)
        return self

    def array(self, address, like):
        """The array in the buffer at an address, in the shape and the dtype of another one."""
        place = self._buffers[address // APART - 1].place
        return self._data[place].copy().view(like.dtype).reshape(like.shape)

    def written(self, address):
        """Which bytes of the buffer at an address hold what was written, or was there."""
        return self._known[self._buffers[address // APART - 1].place]

    def load(self, at, bits, count, access):
        """`count` neighbouring numbers of so many bits at each address, as arrays."""
        size = bits // 8 * count
        places = self._find(at, size, store=False)
        each = (places[:, None] + np.arange(size)).reshape(-1)
        self._refuse(~self._known[each], size, at, "reads what was never written")
        self._refuse(self._races.load(each, access.of_bytes(size)), size, at, "races with a store")
        numbers = self._data.view(UNSIGNED[bits])
        return [numbers[places // (bits // 8) + i] for i in range(count)]

    def store(self, at, bits, values, access):
        """Stores numbers side by side at each address."""
        size = bits // 8 * len(values)
        places = self._find(at, size, store=True)
        new = np.stack(values, axis=1).astype(UNSIGNED[bits]).view(np.uint8).reshape(-1)
        each = (places[:, None] + np.arange(size)).reshape(-1)
        races = self._races.store(each, access.of_bytes(size), self._data[each] != new)
        self._data[each], self._known[each] = new, True
        races |= self._data[each] != new  # of another thread at the same time
        self._refuse(races, size, at, "races with another access")

    def _find(self, at, size, *, store):
        """Where in the bytes of all buffers the addresses are. Refuses what a GPU would refuse."""
        self._refuse(at % size != 0, 1, at, f"misaligned for {size} bytes")
        i, within = at // APART - 1, at % APART
        known = (i >= 0) & (i < len(self._buffers))
        i = np.where(known, i, 0)
        outside = ~known | (within + size > self._sizes[i])
        self._refuse(outside, 1, at, f"{size} bytes outside of memory")
        if store:
            self._refuse(~self._writable[i], 1, at, "a store to read-only memory")
        return self._firsts[i] + within

    def _refuse(self, wrong, size, at, what):
        if wrong.any():
            who = int(np.flatnonzero(wrong)[0]) // size
            raise Fault(f"{what}, {self._name(int(at[who]))}", who)

    def _name(self, address):
        # Half of what is between two buffers lies before the second one.
        i = (address + APART // 2) // APART
        if not 0 < i <= len(self._buffers):
            return f"at address {address}"
        x = self._buffers[i - 1]
        return f"at byte {address - i * APART} of {x.name}, which has {x.bytes.size}"
