"""The machine code of a kernel: registers, spills, instructions, widths of accesses.

Mosaic assembles and disassembles each kernel with the `ptxas` and `nvdisasm` of the CUDA packages
and leaves what they print beside the PTX: `.ptxas`, `.sass_ctrl`.
"""

import collections
import math
import re
from typing import Any, NamedTuple

_INSTRUCTION = re.compile(
    r"(?P<control>\S+:[0-9a-f]+)?\s*/\*[0-9a-f]{4,}\*/"
    r"\s+(?P<predicate>@!?U?P\w+\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)(?P<operands>.*)"
)
_CONTROL = re.compile(r"([-\d&]+):([-\d]):([-\d]):[-Y]:([0-9a-f]+)")
_LABEL = re.compile(r"^\s*(\.L_\w+|\$\S+):\s*$")
_TARGET = re.compile(r"`\(([^)]*)\)")
_PREDICATE = re.compile(r"U?P(?:T|R|\d+)\b")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?(?![\w.])", re.IGNORECASE)
_JUMPS, _ENDS = ("BRA", "BRX", "JMP", "JMX"), ("EXIT", "RET")
_LOADS, _STORES = ("LD", "LDG"), ("ST", "STG")  # generic and global: the same memory here
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


def facts(base, architecture):
    """Plain values about the kernel whose files start with the path `base`."""
    log, code = (base.with_name(base.name + suffix) for suffix in (".ptxas", ".sass_ctrl"))
    if not code.exists():
        raise FileNotFoundError(
            f"There is no {code.name}: Mosaic did not find `nvdisasm` in the CUDA packages."
        )
    return assembled(log.read_text(), architecture) | disassembled(code.read_text())


def assembled(log, architecture):
    """What the assembler reports. Refuses a report for another architecture than this one."""
    target = re.search(r"Compiling entry function '[^']*' for '(\w+)'", log)
    if not target or target[1] != architecture:
        raise ValueError(f"Not a report of ptxas for {architecture}:\n{log}")
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    return {
        "registers": max(map(int, re.findall(r"Used (\d+) registers", log))),
        "spilled_bytes": sum(map(int, spilled)),
    }


class _Instruction(NamedTuple):
    opcode: str
    predicate: str | None
    """What has to hold for it, such as `P0` or `!UP1`."""
    operands: str
    target: str | None
    control: str
    """What the assembler tells the scheduler; see `Scheduled`."""

    @property
    def name(self):
        return self.opcode.split(".")[0]

    @property
    def writes(self):
        """Predicates that it may write: those before the second operand that is none."""
        found, others = set(), 0
        for operand in self.operands.split(","):
            match = _PREDICATE.fullmatch(operand.strip(" ;"))
            if match:
                found.add(match[0])
            elif others := others + 1:
                if others == 2:
                    break
        return found


def disassembled(text):
    """What the machine code holds.

    `instructions` leaves out what never runs: the padding and the trap behind the end of a
    function. `loops` are jumps back that one can come to again, `branches` all other jumps: a part
    may be placed before the one that jumps to it. `calls` are calls of functions that the assembler
    keeps out of line, such as careful division. `shortest` is the number of instructions on the
    shortest way through, None if there are loops. `numbers` are those that instructions have as
    operands, with a digit after the point or an exponent: how many there are, and how many on the
    shortest way. `way` are the instructions on it, for `scheduled`.
    """
    code, labels, last, trapped = [], {}, None, False
    for line in text.splitlines():
        if found := _LABEL.match(line):
            last, trapped = found[1], False
            labels[last] = len(code)
        elif (found := _INSTRUCTION.search(line)) and not trapped:
            opcode, target = found["opcode"], _TARGET.search(found["operands"])
            target = target and target[1]
            trapped = opcode == "BRA" and target is not None and target == last
            if not trapped:
                predicate = found["predicate"] and found["predicate"].strip()[1:]
                fields = found["operands"], target, found["control"] or ""
                code.append(_Instruction(opcode, predicate, *fields))
            last = None
        elif found and found["opcode"] != "NOP":
            raise ValueError(f"Code that nothing jumps to: {line.strip()}")
    names = [instruction.name for instruction in code]
    jumps = [i for i, instruction in enumerate(code) if instruction.name in _JUMPS]
    loops = sum(_is_loop(i, code, labels) for i in jumps)
    way = None if loops else _shortest_way(code, labels)
    return {
        "instructions": len(code),
        "shortest": way and len(way),
        "loops": loops,
        "branches": len(jumps) - loops,
        "calls": names.count("CALL"),
        "load_widths": _widths(code, _LOADS),
        "store_widths": _widths(code, _STORES),
        "opcodes": dict(collections.Counter(names).most_common()),
        "numbers": _numbers(code, way or []),
        "way": [f"{code[i].control} {code[i].opcode}" for i in way or []],
    }


def _is_loop(jump, code, labels):
    """Whether an instruction jumps back to where one can come to it again."""
    first = labels[code[jump].target]
    waiting, seen = [first] if first <= jump else [], set()
    while waiting:
        i = waiting.pop()
        if i == jump:
            return True
        if i < len(code) and i not in seen:
            seen.add(i)
            waiting += _next(i, code, labels)
    return False


def _next(i, code, labels):
    """Where an instruction may lead to."""
    instruction = code[i]
    jumps, ends = instruction.name in _JUMPS, instruction.name in _ENDS
    always = (jumps or ends) and _holds(instruction.predicate, {})
    return [i + 1] * (not always) + ([labels[instruction.target]] if jumps else [])


def _shortest_way(code, labels):
    """The instructions on the shortest way from the start to an end, as indices.

    What a jump has shown of a predicate holds until that is written again, so two conditions that
    exclude each other are not passed by both. Of an exit under a condition of which nothing is
    known, that of blocks of threads that have nothing to do, the way is the one that goes on.
    """
    known_ways: dict[Any, list[int]] = {}

    def way_from(i, known):
        key = i, frozenset(known.items())
        if key not in known_ways:
            known_ways[key] = _way_from(i, dict(known))
        return known_ways[key]

    def _way_from(i, known):
        way = []
        while i < len(code):
            instruction = code[i]
            way.append(i)
            jumps = instruction.name in _JUMPS
            if jumps or instruction.name == "EXIT":
                holds = _holds(instruction.predicate, known)
                ahead = labels[instruction.target] if jumps else len(code)
                if holds is None and jumps:
                    taken = way_from(ahead, known | _shown(instruction.predicate, True))
                    passed = way_from(i + 1, known | _shown(instruction.predicate, False))
                    return way + min(taken, passed, key=len)
                if holds is None:
                    known |= _shown(instruction.predicate, False)
                elif holds:
                    i = ahead
                    continue
            for predicate in instruction.writes:
                if predicate in ("PR", "UPR"):  # all of them
                    known = {}
                known.pop(predicate, None)
            i += 1
        return way

    return way_from(0, {})


def _shown(predicate, holds):
    return {predicate.lstrip("!"): holds != predicate.startswith("!")}


def _holds(predicate, known):
    """Whether a predicate holds; None if that is not known."""
    if predicate is None or predicate in ("PT", "UPT"):
        return True
    value = known.get(predicate.lstrip("!"))
    return None if value is None else value != predicate.startswith("!")


def _numbers(code, way):
    """`{number: [how many there are, how many on the way]}`."""
    way, found = set(way), {}
    for i, instruction in enumerate(code):
        for text in _NUMBER.findall(instruction.operands):
            if "." in text or "e" in text.lower():
                counts = found.setdefault(str(float(text)), [0, 0])
                counts[0] += 1
                counts[1] += i in way
    return dict(sorted(found.items()))


class Scheduled(NamedTuple):
    """An instruction as a scheduler sees it."""

    opcode: str
    waits: tuple[int, ...]
    """Scoreboards, of the six of a warp, that have to be clear before it."""
    reading: int | None
    """The scoreboard that is clear once its operands were read."""
    writing: int | None
    """The scoreboard that is clear once its result is there."""
    stall: int
    """Cycles after which the warp's next one may follow."""

    @property
    def name(self):
        """Without what modifies it."""
        return self.opcode.split(".")[0]

    @property
    def width(self):
        """Bytes of a thread, if it is an access."""
        return _width(self.opcode)


def scheduled(way):
    """The `Scheduled` of the `way` of a kernel's facts."""
    return [_scheduled(*text.split(" ")) for text in way]


def _scheduled(control, opcode):
    found = _CONTROL.fullmatch(control)
    if not found:
        raise ValueError(f"{control!r} is no control code: was this disassembled by Mosaic?")
    reading, writing = (None if x == "-" else int(x) for x in found.group(2, 3))
    waits = tuple(map(int, re.findall(r"\d", found[1])))
    return Scheduled(opcode, waits, reading, writing, int(found[4], 16))


def instructions_on_main_path(kernel, branches=0):
    """How many instructions a thread of a kernel runs.

    Counts every instruction once, so the code has to be a straight line but for `branches`: compile
    the kernel for a shape that leaves no rows over, for which it has no second path. (An early exit
    of the blocks that have nothing to do is no jump, and allowed.)

    Args:
      kernel: The facts of a kernel.
      branches: How many jumps ahead to allow. Of two ways the shorter one is taken: it is the main
        one where the other is there for what is rare.

    Raises:
      ValueError: The code has loops, calls, or more branches.
    """
    code = kernel["sass"]
    if code["loops"] or code["calls"] or code["branches"] > branches:
        raise ValueError(
            f"`{kernel['key']}` is no straight line: {code['loops']} loops, {code['calls']} calls, "
            f"{code['branches']} branches."
        )
    return code["shortest"]


def instructions_per_element(kernel, elements, branches=0):
    """Instructions of all threads together, for each of so many elements."""
    blocks = math.prod(kernel["grid"])
    return instructions_on_main_path(kernel, branches) * kernel["threads"] * blocks / elements


def _widths(code, opcodes):
    """How many accesses there are of each width in bytes (as text, as JSON has it)."""
    found = collections.Counter(str(_width(x.opcode)) for x in code if x.name in opcodes)
    return dict(sorted(found.items()))


def _width(opcode):
    return next((_WIDTHS[flag] for flag in opcode.split(".") if flag in _WIDTHS), 4)
