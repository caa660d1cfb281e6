"""Instructions as functions of `Lanes`: made once for a kernel, run for every block of threads."""

import copy
import dataclasses
import re

import numpy as np

from tests.emulated import accesses, threads
from tests.emulated.faults import Unknown
from tests.emulated.memory import UNSIGNED
from tests.emulated.operands import Operands
from tests.emulated.operations import operation
from tests.emulated.ptx import BITS, immediate

_MOVES = "bra", "bar", "ret"


class Steps:
    """A kernel's instructions, ready to run.

    Attributes:
      steps: For each instruction a function of `Lanes`, and whether it may move lanes.
      labels: Where lanes may come together.
    """

    def __init__(self, kernel):
        self._operands = Operands(kernel)
        self.labels = set(kernel.labels.values())
        self.steps = [self._step(x) for x in kernel.code]

    def with_another(self, place, x):
        """The same, with another instruction in a place."""
        other = copy.copy(self)
        other.steps = list(self.steps)
        other.steps[place] = self._step(x)
        return other

    def _step(self, x):
        try:
            step = _BUILDERS.get(x.name, _computation)(self._operands, x)
        except (Unknown, ValueError, KeyError, AttributeError) as error:
            why = error if isinstance(error, Unknown) else "there is no such form of it here"
            name = self._operands.kernel.name
            raise Unknown(f"{name}, line {x.line}: `{x.text}`: {why}") from error
        if x.guard is not None and x.name != "bra":
            step = _guarded(step, self._operands.condition(x.guard))
        return step, x.name in _MOVES


def _guarded(step, holds):
    def guarded(lanes):
        before, mask = lanes.mask, lanes.mask & holds(lanes)
        if mask.any():
            lanes.only(mask)
            step(lanes)
            lanes.only(before)

    return guarded


def _computation(operands, x):
    """What `operations` has."""
    found = operation(x.name, x.modifiers)
    target, *sources = x.operands
    write, function = operands.write(target), found.function
    reads = [operands.read(s, type_) for s, type_ in zip(sources, found.sources, strict=True)]
    if found.ends:
        (read,) = reads
        return lambda lanes: write(lanes, function(read(lanes), lanes.launch.end))
    return lambda lanes: write(lanes, function(*[read(lanes) for read in reads]))


def _compare(operands, x):
    """Of two numbers, or of two pairs of numbers of 16 bits, with a result for each."""
    *how, type_ = x.modifiers
    if not type_.endswith("16x2"):
        return _computation(operands, x)
    compare = operation("setp", (*how, type_.removesuffix("x2"))).function
    targets, a, b = x.operands
    low, high = (operands.write(target) for target in targets.split("|"))
    a, b, half = operands.read(a, "u32"), operands.read(b, "u32"), np.uint32(16)

    def step(lanes):
        pairs = a(lanes), b(lanes)
        low(lanes, compare(*[x.astype(np.uint16) for x in pairs]))
        high(lanes, compare(*[(x >> half).astype(np.uint16) for x in pairs]))

    return step


def _permute(operands, x):
    """What gives no byte need not have a value: LLVM then names a register that has none."""
    target, *sources, selectors = x.operands
    if re.fullmatch(r"0x[\dA-F]+U?", selectors):
        number = immediate(selectors, 16)
        taken = {number >> shift & 4 for shift in (0, 4, 8, 12)}
        sources = [x if of in taken else "0" for x, of in zip(sources, (0, 4), strict=True)]
    return _computation(operands, dataclasses.replace(x, operands=(target, *sources, selectors)))


def _move(operands, x):
    (type_,), (target, source) = x.modifiers, x.operands
    bits = BITS[type_]
    if isinstance(source, tuple):
        return _pack(operands, target, source, bits)
    if isinstance(target, tuple):
        return _unpack(operands, target, source, bits)
    write, read = operands.write(target), operands.read(source, "pred" if bits == 1 else f"u{bits}")
    return lambda lanes: write(lanes, read(lanes))


def _pack(operands, target, sources, bits):
    part, whole_type = bits // len(sources), UNSIGNED[bits]
    write, reads = operands.write(target), [operands.read(s, f"u{part}") for s in sources]

    def pack(lanes):
        whole = whole_type(0)
        for i, read in enumerate(reads):
            whole = whole | read(lanes).astype(whole_type) << whole_type(i * part)
        write(lanes, whole)

    return pack


def _unpack(operands, targets, source, bits):
    part, whole_type = bits // len(targets), UNSIGNED[bits]
    writes, read = [operands.write(t) for t in targets], operands.read(source, f"u{bits}")

    def unpack(lanes):
        whole = read(lanes)
        for i, write in enumerate(writes):
            write(lanes, (whole >> whole_type(i * part)).astype(UNSIGNED[part]))

    return unpack


_BUILDERS = {
    "ld": accesses.load,
    "st": accesses.store,
    "ldmatrix": accesses.load_matrices,
    "mov": _move,
    "setp": _compare,
    "prmt": _permute,
    "shfl": threads.shuffle,
    "redux": threads.reduce,
    "elect": threads.elect,
    "bar": threads.barrier,
    "bra": threads.branch,
    "ret": threads.leave,
    "fence": threads.nothing,
}
"""Of instructions that are no operations: what makes a step of one."""
