"""A Mosaic kernel as its compiler gets it (MLIR): its buffers, and which of them it touches."""

import collections
import dataclasses
import re

UNUSED = "-"
_ARGUMENT = re.compile(r"mosaic_gpu\.from_kernel_arg_idx = (\d+)")
_MEMREF = re.compile(r"memref<((?:\d+x)*)([a-z]\w*)[,>]")
_ASSIGNED = re.compile(r"^\s*(%[\w#]+) = ")
_VALUE = re.compile(r"%\w+")
_VIEW = re.compile(
    r"(memref\.(subview|cast|reinterpret_cast|memory_space_cast|view|transpose|reshape|\w+_shape)"
    r"|builtin\.unrealized_conversion_cast)\b"
)
_LOAD = re.compile(r'"?(?:mosaic_gpu\.(?:vector_load|async_load)|memref\.load)\b')
_STORE = re.compile(r'"?(?:mosaic_gpu\.(?:vector_store|async_store)|memref\.store)\b')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One compiled kernel.

    Attributes:
      name: The name that it was launched under.
      key: The name and what it was launched on, as in `scale(64x256xf32, 1xf32)`. A `-` stands for
        what it does not use.
      signature: `(shape, bits of an element)` of the buffers that it uses, by their number.
      reads: Which of them it loads from.
      writes: Which of them it stores to.
      grid: Blocks of threads.
      threads: Threads of a block.
      sass: `sass.facts` of the machine code.
    """

    name: str
    key: str
    signature: dict
    reads: list[int]
    writes: list[int]
    grid: list[int]
    threads: int
    sass: dict

    def facts(self):
        """As plain values."""
        values = dataclasses.asdict(self)
        del values["signature"]
        return values


def identity(text):
    """The name of a kernel and the types of the buffers that it uses, at any stage of compiling."""
    name = re.search(r"^module @(\w+)", text, re.MULTILINE)[1]
    # A stage that drops values without a use says nothing of the other buffers.
    uses = collections.Counter(_VALUE.findall(text))
    return name, tuple(
        (number, type_)
        for number, (value, type_) in sorted(_buffers(text).items())
        if uses[value] > 1
    )


def kernel(text, machine_code):
    """A `Kernel` from its text, which is MLIR, and `sass.facts`."""
    name, used = identity(text)
    types = dict(used)
    listed = [types.get(number, UNUSED) for number in range(max(types, default=-1) + 1)]
    reads, writes = accesses(text)
    grid, threads = _launch_shape(text)
    return Kernel(
        name=name,
        key=f"{name}({', '.join(listed)})",
        signature={number: _shape_and_bits(type_) for number, type_ in used},
        reads=reads,
        writes=writes,
        grid=grid,
        threads=threads,
        sass=machine_code,
    )


def accesses(text):
    """`(reads, writes)`: the numbers of the buffers that a kernel loads from and stores to.

    Follows every view of a buffer. What it does not know is an error: an access that is overlooked
    would be bytes that are not counted.
    """
    roots = {value: number for number, (value, _) in _buffers(text).items()}
    reads, writes = set(), set()
    for line in text.splitlines():
        assigned = _ASSIGNED.match(line)
        right = line[assigned.end() :] if assigned else line.strip()
        used = {roots[value] for value in _VALUE.findall(right) if value in roots}
        if not used:
            continue
        if _LOAD.match(right):
            reads |= used
        elif _STORE.match(right):
            writes |= used
        elif assigned and _VIEW.match(right) and len(used) == 1:
            roots[assigned[1]] = used.pop()
        else:
            raise NotImplementedError(f"Does this read or write a buffer? {line.strip()}")
    return sorted(reads), sorted(writes)


def _buffers(text):
    """`{number: (value, type)}` of the buffers that a kernel is given."""
    found = {}
    for line in text.splitlines():
        if number := _ARGUMENT.search(line):
            found[int(number[1])] = _ASSIGNED.match(line)[1], "".join(_MEMREF.findall(line)[-1])
    return found


def _shape_and_bits(type_):
    *shape, element = type_.split("x")
    return tuple(map(int, shape)), int(re.search(r"\d+", element)[0])


def _launch_shape(text):
    constants = dict(re.findall(r"(%\w+) = arith\.constant (\d+) : index", text))
    launch = re.search(r"gpu\.launch .* in \((.*?)\) threads\(.*?\) in \((.*?)\)", text)
    grid, block = (
        [int(constants[value]) for value in re.findall(r"= (%\w+)", part)]
        for part in launch.groups()
    )
    return grid, block[0] * block[1] * block[2]
