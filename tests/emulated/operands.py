"""What stands behind an instruction's name: registers, numbers, addresses, conditions.

Each becomes a function of `Lanes`, made once for an instruction.
"""

import re

import numpy as np

from tests.emulated.faults import Unknown
from tests.emulated.lanes import WARP
from tests.emulated.memory import UNSIGNED
from tests.emulated.ptx import BITS, immediate

DTYPES = {"pred": np.dtype(bool), "f32": np.dtype(np.float32)}
DTYPES |= {f"{kind}{bits}": np.dtype(UNSIGNED[bits]) for kind in "bu" for bits in UNSIGNED}
DTYPES |= {f"s{bits}": np.dtype(f"i{bits // 8}") for bits in UNSIGNED}
"""Of arrays, by the type in PTX."""

_SPECIAL = {
    "%tid.x": lambda lanes: lanes.tid,
    "%ctaid.x": lambda lanes: lanes.block,
    "%laneid": lambda lanes: lanes.tid % WARP,
    "%nctaid.x": lambda lanes: np.asarray(lanes.launch.blocks.stop),
    "%ntid.x": lambda lanes: np.asarray(lanes.launch.threads),
}


class Operands:
    """Makes functions of a kernel's operands."""

    def __init__(self, kernel):
        self.kernel = kernel
        self._numbers = {name: i for i, name in enumerate(kernel.registers)}

    def read(self, operand, type_):
        """A function that returns an operand as an array of a type."""
        bits, dtype = BITS[type_], DTYPES[type_]
        if operand.startswith("!"):
            read = self.read(operand[1:], type_)
            return lambda lanes: ~read(lanes)
        if operand in self._numbers:
            return self._register(operand, bits, dtype)
        if bits == 1:
            raise ValueError(operand)
        if special := _SPECIAL.get(operand):
            return lambda lanes: special(lanes).astype(UNSIGNED[bits]).view(dtype)
        if operand == self.kernel.shared:  # its address in the memory of a block
            operand = "0"
        constant = np.array(immediate(operand, bits), UNSIGNED[bits]).view(dtype)
        return lambda lanes: constant

    def _register(self, name, bits, dtype):
        number, width = self._numbers[name], self.kernel.registers[name]
        if width == bits:
            return lambda lanes: lanes.read(number).view(dtype)
        if min(width, bits) == 1:
            raise ValueError(name)
        return lambda lanes: lanes.read(number).astype(UNSIGNED[bits]).view(dtype)

    def write(self, operand):
        """A function that gives a register a value, cut or extended to its width."""
        if operand == "_":
            return lambda lanes, value: None
        number, width = self._numbers[operand], self.kernel.registers[operand]
        if width == 1:
            return lambda lanes, value: lanes.write(number, value)

        def write(lanes, value):
            if value.dtype.kind == "f":
                value = value.view(UNSIGNED[8 * value.dtype.itemsize])
            lanes.write(number, value.astype(UNSIGNED[width], copy=False))

        return write

    def condition(self, guard):
        """A function that returns where a guard lets the instruction happen."""
        predicate, value = guard
        read = self.read(predicate, "pred")
        return lambda lanes: read(lanes) == value

    def address(self, operand):
        """A function that returns an address of each lane of the mask."""
        base, offset = re.fullmatch(r"\[([%\w$]+)(?:\+(-?\d+))?\]", operand).groups()
        read = self.read(base, f"u{self.kernel.registers.get(base, 64)}")
        offset = int(offset or 0)
        return lambda lanes: lanes.each(read(lanes)).astype(np.int64) + offset


def several(operand):
    """The registers of an operand that may be several in braces."""
    return operand if isinstance(operand, tuple) else (operand,)


def expect(operand, number):
    """Refuses another number than this: of a warp, of which only all threads are known here."""
    if immediate(operand, 32) != number:
        raise Unknown("a part of a warp")
