"""The text of a kernel in PTX, as values.

Only the forms that LLVM writes for the kernels of Mosaic and Triton: one kernel in a module,
pointers as parameters, one array in shared memory, one scope.
"""

import dataclasses
import re

from tests.emulated.faults import Unknown

BITS = {"pred": 1, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "f32": 32, "f32x2": 64}
BITS |= {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: Of its operation, such as `fma`.
      modifiers: What follows, such as `("rn", "f32")`.
      operands: Registers, numbers and `[addresses]`; registers in braces are a tuple.
      guard: `(predicate, value that it has to have)`, or None.
      line: In the text.
      text: As it stands there.
    """

    name: str
    modifiers: tuple[str, ...]
    operands: tuple
    guard: tuple[str, bool] | None
    line: int
    text: str


@dataclasses.dataclass
class Kernel:
    """A kernel.

    Attributes:
      name: Its name.
      parameters: Names of its parameters, all of them pointers.
      registers: Bits of each register, by name. Predicates have one.
      code: `Instruction`s.
      labels: Which instruction is next after a label.
      shared: The name of its array in shared memory, or None.
    """

    name: str
    parameters: list[str]
    registers: dict[str, int] = dataclasses.field(default_factory=dict)
    code: list[Instruction] = dataclasses.field(default_factory=list)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    shared: str | None = None


_ENTRY = re.compile(r"\.visible \.entry ([\w$]+)\s*\((.*?)\)([^{;]*)\{(.*?)\n\}(.*)", re.DOTALL)
_PARAMETER = re.compile(r"\.param \.u64 \.ptr(?: \.\w+)*? \.align \d+ ([\w$]+)")
_SPOKEN_OF = re.compile(
    r"\.(?:version|target|address_size|loc|file|section|maxntid|reqntid|minnctapersm|pragma)\b"
)
"""Lines that change nothing here: for debuggers, and for the assembler. (A pragma says which bytes
of a load that LLVM has widened are meant. Here all of them have to be there.)"""
_DEBUG = re.compile(r"\.section\s+\.debug_\w+\s*\{[^}]*\}")
_CONSTANT = re.compile(r"\.global \.align \d+ \.b8 [\w$]+\[\d+\] = \{[\d, ]*\};")
"""Constants in memory. An instruction that names one is refused."""
_REGISTERS = re.compile(r"\.reg \.(\w+)\s+(%\w+)<(\d+)>")
_SHARED = re.compile(r"\.(?:extern )?\.?shared \.align \d+ \.b8 ([\w$]+)(?:\[\d*\])?")
_LABEL = re.compile(r"([\w$]+):")
_GUARD = re.compile(r"@(!?)(%\w+)\s+")
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,]+?)\s*(?:,|$)")


def parse(text):
    """The `Kernel` in a PTX module.

    Raises:
      Unknown: It has something that is no kernel as described above.
    """
    text = _DEBUG.sub("", re.sub(r"//[^\n]*", "", text))
    entry = _ENTRY.search(text)
    if entry is None:
        raise Unknown("There is no kernel in this text.")
    name, parameters, bounds, body, after = entry.groups()
    found = [_PARAMETER.fullmatch(" ".join(x.split())) for x in parameters.split(",")]
    if not all(found):
        raise Unknown(f"parameters that are not all pointers: {parameters}")
    kernel = Kernel(name, [x[1] for x in found if x])
    for statement in [
        *text[: entry.start()].splitlines(),
        *bounds.splitlines(),
        *after.splitlines(),
    ]:
        _outside(kernel, statement.strip())
    _body(kernel, body, text[: entry.start(4)].count("\n") + 1)
    return kernel


def _outside(kernel, statement):
    if shared := _SHARED.match(statement):
        _share(kernel, shared[1])
    elif statement and not _SPOKEN_OF.match(statement) and not _CONSTANT.fullmatch(statement):
        raise Unknown(f"outside of the kernel: {statement}")


def _share(kernel, name):
    if kernel.shared not in (None, name):
        raise Unknown(f"a second array in shared memory: {name}")
    kernel.shared = name


def _body(kernel, text, line):
    for number, statement in enumerate(text.splitlines(), line):
        statement = " ".join(statement.split())
        if label := _LABEL.fullmatch(statement):
            kernel.labels[label[1]] = len(kernel.code)
        elif registers := _REGISTERS.match(statement):
            type_, stem, count = registers.groups()
            kernel.registers |= {f"{stem}{i}": BITS[type_] for i in range(int(count))}
        elif shared := _SHARED.match(statement):
            _share(kernel, shared[1])
        elif re.match(r"@?[!%\w]", statement) and statement.endswith(";"):
            kernel.code.append(_instruction(statement[:-1], number))
        elif statement and not _SPOKEN_OF.match(statement):
            raise Unknown(f"line {number}: {statement}")


def _instruction(text, line):
    guard = _GUARD.match(text)
    opcode, _, rest = text[guard.end() if guard else 0 :].partition(" ")
    name, *modifiers = opcode.split(".")
    operands = (x[1].replace(" ", "") for x in _OPERAND.finditer(rest))
    return Instruction(
        name,
        tuple(modifiers),
        tuple(tuple(x[1:-1].split(",")) if x[0] == "{" else x for x in operands),
        (guard[2], not guard[1]) if guard else None,
        line,
        text,
    )


_NUMBER = re.compile(r"(-?)(0[xX][\da-fA-F]+|\d+)U?")


def immediate(text, bits):
    """The bits of a number as it stands in PTX.

    Raises:
      Unknown: It is no number.
    """
    if number := re.fullmatch(r"0[fF]([\da-fA-F]{8})", text):
        return int(number[1], 16)
    if number := _NUMBER.fullmatch(text):
        value = int(number[2], 0)
        return (-value if number[1] else value) % 2**bits
    raise Unknown(f"no number and no register: {text}")
