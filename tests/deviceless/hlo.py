"""The text of a compiled program (optimized HLO) as values, as far as counting bytes needs it."""

import dataclasses
import math
import re

_NAME = r"%([\w.\-]+)"
# `ENTRY %main.2 (x: f32[8]) -> f32[8] {`, or the same without ENTRY.
_COMPUTATION = re.compile(rf"^(ENTRY )?{_NAME} \(.*\{{$")
_INSTRUCTION = re.compile(rf"^\s+(ROOT )?{_NAME} = (.*)$")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HOST = "S(5)"  # the memory space of pinned host memory, in a layout


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of one array."""

    dtype: str
    shape: tuple[int, ...]
    on_host: bool = False

    @property
    def bits(self):
        """Bits of an element: the first number in the name of its dtype."""
        return 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])

    @property
    def bytes(self):
        """Bytes of device memory."""
        return 0 if self.on_host else math.ceil(math.prod(self.shape) * self.bits / 8)

    def __str__(self):
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """What it results in; a tuple is flattened."""
    operands: tuple[str, ...]
    """Names of instructions. For the opcode `parameter`, its number."""
    attributes: str
    root: bool

    @property
    def bytes(self):
        """Bytes of all its results."""
        return sum(x.bytes for x in self.arrays)

    def called(self):
        """Names of the computations that it runs (not those that combine two elements)."""
        names = re.findall(rf"\b(?:calls|body|condition)={_NAME}", self.attributes)
        if self.opcode == "call":
            names += re.findall(rf"\bto_apply={_NAME}", self.attributes)
        for group in re.findall(r"\bbranch_computations=\{([^}]*)\}", self.attributes):
            names += re.findall(_NAME, group)
        return names + re.findall(rf"\b(?:true|false)_computation={_NAME}", self.attributes)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program; instructions by name, in the order in which they run."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self):
        """What it returns."""
        return next(x for x in self.instructions.values() if x.root)

    def users(self, name):
        """Instructions that take the result of `name`."""
        return [x for x in self.instructions.values() if name in x.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    """All functions of a program. `entry` is the one that a call runs."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text):
    """A `Program` from `executable.as_text()`."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = Computation(found[2], {})
            computations[current.name] = current
            entry = current if found[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.instructions[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if entry is None:
        raise ValueError("This text has no ENTRY: it is not the text of a compiled program.")
    return Program(computations, entry)


def arrays(text):
    """The array types in a piece of text. Tokens and the like, which have no bytes, are left out.

    Args:
      text: A type, such as `(f32[8]{0}, u8[2,4]{1,0:S(5)})`.
    """
    return tuple(
        Array(dtype, tuple(map(int, filter(None, shape.split(",")))), _HOST in layout)
        for dtype, shape, layout in _ARRAY.findall(text)
        if dtype != "token"
    )


def _instruction(name, text, root):
    # A type is a word or a tuple in parentheses; `opcode(operands)` and attributes follow.
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    type_, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : end - 1]
    operands = (inside,) if opcode == "parameter" else tuple(re.findall(_NAME, inside))
    return Instruction(name, opcode, arrays(type_), operands, rest[end:], root)


def _closing(text, start):
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"No parenthesis closes this one: {text[start : start + 80]}")
