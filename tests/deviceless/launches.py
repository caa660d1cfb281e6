"""The kernels that a compiled program launches, in order, and the bytes that each one moves.

A byte counts once per kernel that reads it and once per kernel that writes it: what main memory
has to carry if nothing stays in a cache from one kernel to the next.
"""

import dataclasses
import re

from tests.deviceless import jax_triton_calls

_FREE = {  # no kernel: a name for bytes that are there already
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("add-dependency", "opt-barrier", "partition-id", "replica-id"),
}
_MOVING = {  # the value of an element does not change
    *("copy", "transpose", "reshape", "slice", "concatenate", "pad"),
    *("dynamic-slice", "dynamic-update-slice"),
}
_COLLECTIVES = {
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
}
_CONTROL = {"while", "conditional"}
MOSAIC = "mosaic_gpu_v2"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel, as plain values.

    Attributes:
      kind: "mosaic", "triton", "fusion", "reduce" (a fusion that reduces), "copy" (a fusion or an
        instruction that only moves elements), "collective", "custom-call", or an opcode of XLA.
      name: The name of a kernel of Mosaic or Triton, the target of another custom call, the opcode
        of a collective, and otherwise the name that XLA gave it.
      reads: Bytes of main memory.
      writes: Bytes of main memory.
      results: Types of what it returns or writes in place.
      kernel: For kernels of Mosaic and Triton, the key of the kernel in the facts of its case.
    """

    kind: str
    name: str
    reads: int
    writes: int
    results: list[str]
    kernel: str | None = None


def launches(program, mosaic=None):
    """`(kernels, loops)` of a `hlo.Program`.

    Args:
      program: The program.
      mosaic: `mosaic.Kernel`s, which know what the Mosaic kernels in the program read and write.
        With None, an operand counts as read, and a result as written.

    Returns:
      A `Launch` for each kernel that ENTRY runs, and the opcodes of the loops and branches in
      ENTRY. What happens inside those is not among the launches.
    """
    found, control = [], []

    def visit(computation):
        for x in computation.instructions.values():
            if x.opcode in _CONTROL:
                control.append(x.opcode)
            elif x.opcode in ("call", "async-start"):
                for name in x.called():
                    visit(program.computations[name])
            elif x.opcode not in _FREE and not x.opcode.endswith(("-done", "-update")):
                found.append(_launch(program, computation, x, mosaic))

    visit(program.entry)
    return found, control


def triton_kernels(program, architecture):
    """Facts of all Triton kernels of a `hlo.Program`, by key, as those of `mosaic.Kernel`."""
    found = {}
    for computation in program.computations.values():
        for x in computation.instructions.values():
            if x.opcode == "custom-call" and f'"{jax_triton_calls.TARGET}"' in x.attributes:
                operands = [computation.instructions[name] for name in x.operands]
                arrays, made = buffers(operands, x), jax_triton_calls.kernel(x.attributes)
                facts = made.facts(arrays, architecture)
                if found.setdefault(facts["key"], facts) != facts:
                    raise LookupError(f"There are two kernels `{facts['key']}`.")
    return found


def _launch(program, computation, x, mosaic):
    operands = [computation.instructions[name] for name in x.operands]
    opcode = x.opcode.removesuffix("-start")  # the kernel runs beside others
    results = _results(x, operands)
    reads, writes = [y.bytes for y in operands], sum(y.bytes for y in results)
    kind, name, kernel = opcode, x.name, None
    if opcode == "fusion":
        body = program.computations[x.called()[0]]
        kind = _kind(program, body)
        reads = [_read(body, i, size) for i, size in enumerate(reads)]
        writes = _written(body)
    elif opcode == "custom-call":
        name = re.search(r'custom_call_target="([^"]*)"', x.attributes)[1]
        if name == MOSAIC:
            kind, name = "mosaic", kernel_name(x)
            if mosaic is not None:
                made = find(mosaic, name, operands, x)
                name = made.name
                sizes = [y.bytes for y in buffers(operands, x)]
                reads = [sizes[i] for i in made.reads]
                writes, kernel = sum(sizes[i] for i in made.writes), made.key
        elif name == jax_triton_calls.TARGET:
            made, given = jax_triton_calls.kernel(x.attributes), buffers(operands, x)
            kind, name, kernel = "triton", made.name, made.key(given)
            reads = [given[i].bytes for i in made.reads]
            writes = sum(given[i].bytes for i in made.writes)
    elif opcode in _MOVING:
        kind = "copy"
    elif opcode in _COLLECTIVES:
        kind, name = "collective", opcode
    return Launch(kind, name, sum(reads), writes, [str(y) for y in results], kernel)


def _results(x, operands):
    """The arrays that an instruction returns."""
    if x.opcode == "copy-start":  # (destination, source, context)
        return x.arrays[:1]
    given = tuple(y for operand in operands for y in operand.arrays)
    if x.opcode.endswith("-start") and x.arrays[: len(given)] == given:  # (operands, results, ...)
        return tuple(y for y in x.arrays[len(given) :] if y.shape)
    return x.arrays


def kernel_name(x):
    """The name of a Mosaic kernel: in the stack of names, what the kernel primitive is under.

    None if it has no such stack, as what XLA gets when it divides a program.
    """
    found = re.search(r'op_name="[^"]*?([^/"]+)/mpmd_map"', x.attributes)
    return found[1] if found else None


def buffers(operands, x):
    """Arrays that a kernel is given: its operands, and the results that are none of them."""
    aliasing = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", x.attributes)
    pairs = re.findall(r"\{(\d*)\}: \(\d+", aliasing[1]) if aliasing else []
    aliased = {int(index or 0) for index in pairs}
    given = [array for operand in operands for array in operand.arrays]
    return given + [array for i, array in enumerate(x.arrays) if i not in aliased]


def find(mosaic, name, operands, x):
    """The one of the `mosaic.Kernel`s that this instruction launches."""
    given = {i: (y.shape, y.bits) for i, y in enumerate(buffers(operands, x))}
    found = {
        made.key: made
        for made in mosaic
        if name in (made.name, None) and made.signature.items() <= given.items()
    }
    if len(found) != 1:
        known = sorted({made.key for made in mosaic})
        raise ValueError(f"{len(found)} kernels `{name}` of {given} are among {known}.")
    return next(iter(found.values()))


def _kind(program, body):
    opcodes = _opcodes(program, body)
    if opcodes <= _MOVING | _FREE and opcodes & _MOVING:
        return "copy"
    return "reduce" if "reduce" in opcodes else "fusion"


def _opcodes(program, body):
    found = set()
    for x in body.instructions.values():
        found.add(x.opcode)
        if x.opcode == "fusion":
            found = found.union(*(_opcodes(program, program.computations[c]) for c in x.called()))
    return found - {"fusion"}


def _read(body, index, size):
    """Bytes that a fusion reads of one operand: the slices of it, if it takes nothing else."""
    name = next(
        x.name
        for x in body.instructions.values()
        if x.opcode == "parameter" and x.operands == (str(index),)
    )
    total, names = 0, [name]
    while names:
        name = names.pop()
        users = body.users(name)
        if not users:
            return size
        for user in users:
            if user.opcode == "bitcast" and not user.root:
                names.append(user.name)
            elif user.opcode in ("slice", "dynamic-slice") and user.operands[0] == name:
                total += user.bytes
            elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
                return size
    return min(total, size)


def _written(body):
    """Bytes that a fusion writes: of an update in place, the updated part."""
    root = body.root
    parts = [body.instructions[x] for x in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for part in parts:
        while part.opcode == "bitcast":
            part = body.instructions[part.operands[0]]
        if part.opcode == "dynamic-update-slice":
            part = body.instructions[part.operands[1]]
        total += part.bytes
    return total
