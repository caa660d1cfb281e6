"""Triton kernels in a compiled program: each launch carries its kernel, as PTX and as Triton's IR.

The attributes of a custom call hold a protocol buffer, compressed. Its fields, by number:

| message | 1 | 2 | 3 | 4 | 5 |
|---|---|---|---|---|---|
| call of any kind | kernel call | | | name | |
| kernel call | kernel | blocks of threads, x | y | z | parameters |
| kernel | name | warps | shared memory | PTX | Triton's IR |
"""

import dataclasses
import functools
import re
import zlib

from tests.deviceless import assembling

TARGET = "triton_kernel_call_ffi"
_OPAQUE = re.compile(r'opaque = "([^"]*)"')
_ESCAPED = re.compile(r"\\(\\|[0-9A-Fa-f]{2})")
_FUNCTION = re.compile(r"tt\.func public @\w+\((.*)\)")
_PARAMETER = re.compile(r"(%\w+): !tt\.ptr<")
_ASSIGNED = re.compile(r"^\s*(%\w+) = ")
_VALUE = re.compile(r"%\w+")
_VIEWS = ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.bitcast")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as a program launches it."""

    name: str
    ptx: str
    reads: tuple[int, ...]
    """Which of its arrays it loads from."""
    writes: tuple[int, ...]
    """Which of them it stores to."""
    grid: tuple[int, int, int]
    threads: int

    def key(self, arrays):
        """The name, and what it was launched on."""
        return f"{self.name}({', '.join(map(str, arrays))})"

    def facts(self, arrays, architecture):
        """As plain values, as those of `mosaic.Kernel`."""
        values = dataclasses.asdict(self) | dict(key=self.key(arrays))
        return values | dict(sass=assembling.facts(values.pop("ptx"), architecture))


@functools.cache
def kernel(attributes):
    """The `Kernel` in the attributes of an instruction."""
    escaped = _OPAQUE.search(attributes)[1]
    text = _ESCAPED.sub(lambda x: "\\" if x[1] == "\\" else chr(int(x[1], 16)), escaped)
    call = _fields(_fields(zlib.decompress(text.encode("latin-1")))[1])
    made = _fields(call[1])
    name, ptx, ir = (made[number].decode() for number in (1, 4, 5))
    # What is left out of a message is 0, and a grid of 0 is one of 1.
    grid = tuple(call.get(number, 1) for number in (2, 3, 4))
    return Kernel(name, ptx, *accesses(ir), grid, 32 * made[2])


def accesses(ir):
    """`(reads, writes)`: the numbers of the arrays that a kernel loads from and stores to."""
    head = _FUNCTION.search(ir)
    body, *_ = ir[head.end() :].split("tt.func")  # others take values, whose names are their own
    parameters = _PARAMETER.findall(head[1])
    roots = {value: number for number, value in enumerate(parameters)}
    reads, writes = set(), set()
    for line in body.splitlines():
        assigned = _ASSIGNED.match(line)
        right = line[assigned.end() :] if assigned else line.strip()
        used = {roots[value] for value in _VALUE.findall(right) if value in roots}
        if assigned:
            roots.pop(assigned[1], None)  # a name may be that of another value behind a branch
        if not used:
            continue
        if right.startswith("tt.load"):
            reads |= used
        elif right.startswith("tt.store"):
            writes |= used
        elif assigned and right.startswith(_VIEWS) and len(used) == 1:
            roots[assigned[1]] = used.pop()
        else:
            raise NotImplementedError(f"Does this read or write an array? {line.strip()}")
    return tuple(sorted(reads)), tuple(sorted(writes))


def _fields(message):
    """The fields of a protocol buffer by number: bytes or integers, the last one of each."""
    found, i = {}, 0

    def integer():
        nonlocal i
        value = shift = 0
        while True:
            byte, i = message[i], i + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while i < len(message):
        number, kind = divmod(integer(), 8)
        value = integer()
        if kind == 2:
            value, i = message[i : i + value], i + value
        elif kind != 0:
            raise ValueError(f"field {number} is neither bytes nor an integer")
        found[number] = value
    return found
