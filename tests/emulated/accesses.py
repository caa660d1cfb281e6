"""Instructions that load and store."""

import numpy as np

from tests.emulated.faults import Fault, Unknown
from tests.emulated.lanes import WARP
from tests.emulated.operands import DTYPES, several
from tests.emulated.ptx import BITS

_KNOWN = {"global", "shared", "v2", "v4", "v8"}


def _kind(x):
    """`(whether in shared memory, type, count)` of a load or a store."""
    *how, type_ = x.modifiers
    if set(how) - _KNOWN or type_ not in DTYPES:
        raise Unknown("there is no such access here")
    return "shared" in how, type_, next((int(m[1:]) for m in how if m[0] == "v"), 1)


def load(operands, x):
    """From a parameter, or from addresses."""
    if x.modifiers[0] in ("param::entry", "param"):
        return _parameter(operands, x)
    in_shared, type_, count = _kind(x)
    targets, source = x.operands
    address, writes = operands.address(source), [operands.write(t) for t in several(targets)]
    if len(writes) != count:
        raise ValueError(x.text)

    def step(lanes):
        memory, at = lanes.memory(in_shared, address(lanes))
        values = memory.load(at, BITS[type_], count, lanes.access())
        for write, value in zip(writes, values, strict=True):
            write(lanes, lanes.spread(value.view(DTYPES[type_])))

    return step


def load_matrices(operands, x):
    """Matrices of 8 rows of 16 bytes, of which each thread of a warp gets 4 bytes.

    The threads give the addresses of rows: the first 8 those of the first matrix, and so on.
    """
    *how, count, where, type_ = x.modifiers
    counts = {"x1": 1, "x2": 2, "x4": 4}
    if (*how, where, type_) != ("sync", "aligned", "m8n8", "shared", "b16") or count not in counts:
        raise Unknown("there is no such form of the instruction here")
    targets, source = x.operands
    address, writes = operands.address(source), [operands.write(t) for t in several(targets)]
    if len(writes) != counts[count]:
        raise ValueError(x.text)

    def step(lanes):
        lanes.whole_warps()
        rows, part = address(lanes).reshape(-1, WARP), 4 * (np.arange(WARP) % 4)
        for i, write in enumerate(writes):
            of_matrix = rows[:, 8 * i : 8 * i + 8]
            if (of_matrix % 16).any():
                raise Fault("a row of a matrix that is misaligned for 16 bytes", int(lanes.at[0]))
            at = (np.repeat(of_matrix, 4, axis=1) + part).reshape(-1)
            (value,) = lanes.shared.load(lanes.shared_base[lanes.at] + at, 32, 1, lanes.access())
            write(lanes, lanes.spread(value))

    return step


def _parameter(operands, x):
    target, source = x.operands
    write, number = operands.write(target), operands.kernel.parameters.index(source[1:-1])
    return lambda lanes: write(lanes, np.uint64(lanes.launch.arguments[number]))


def store(operands, x):
    """To addresses."""
    in_shared, type_, count = _kind(x)
    target, sources = x.operands
    bits, address = BITS[type_], operands.address(target)
    reads = [operands.read(source, f"u{bits}") for source in several(sources)]
    if len(reads) != count:
        raise ValueError(x.text)

    def step(lanes):
        memory, at = lanes.memory(in_shared, address(lanes))
        memory.store(at, bits, [lanes.each(read(lanes)) for read in reads], lanes.access())

    return step
