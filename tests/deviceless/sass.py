"""The machine code of a Mosaic kernel: registers, spills, instructions, widths of accesses.

Mosaic assembles and disassembles each kernel with the `ptxas` and `nvdisasm` of the CUDA packages
and leaves what they print beside the PTX: `.ptxas`, `.sass_ctrl`.
"""

import collections
import math
import re

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_LABEL = re.compile(r"^\s*(\.L_\w+|\$\S+):\s*$")
_TARGET = re.compile(r"`\(([^)]*)\)")
_JUMPS = ("BRA", "BRX", "JMP", "JMX")
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


def disassembled(text):
    """What the machine code holds.

    `instructions` leaves out what never runs: the padding and the trap behind the end of a
    function. `loops` are jumps back, `branches` jumps ahead; `calls` are calls of functions that
    the assembler keeps out of line, such as careful division. `shortest` is the number of
    instructions on the shortest way through, None if there are loops.
    """
    code, labels, last, trapped = [], {}, None, False
    for line in text.splitlines():
        if found := _LABEL.match(line):
            last, trapped = found[1], False
            labels[last] = len(code)
        elif (found := _INSTRUCTION.search(line)) and not trapped:
            opcode, target = found[2], _TARGET.search(found[3])
            target = target and target[1]
            trapped = opcode == "BRA" and target is not None and target == last
            if not trapped:
                code.append((opcode, target, target in labels, bool(found[1])))
            last = None
        elif found and found[2] != "NOP":
            raise ValueError(f"Code that nothing jumps to: {line.strip()}")
    names = [opcode.split(".")[0] for opcode, *_ in code]
    jumps = [back for (_, _, back, _), name in zip(code, names, strict=True) if name in _JUMPS]
    return {
        "instructions": len(code),
        "shortest": None if any(jumps) else _shortest(code, names, labels),
        "loops": sum(jumps),
        "branches": len(jumps) - sum(jumps),
        "calls": names.count("CALL"),
        "load_widths": _widths(code, _LOADS),
        "store_widths": _widths(code, _STORES),
        "opcodes": dict(collections.Counter(names).most_common()),
    }


def _shortest(code, names, labels):
    """The fewest instructions from the start to the end; early exits under a condition apart."""
    left = [0] * (len(code) + 1)  # from each instruction to the end
    for i in range(len(code) - 1, -1, -1):
        _, target, _, conditional = code[i]
        ahead = [left[i + 1]] if conditional or names[i] not in (*_JUMPS, "EXIT") else []
        if names[i] in _JUMPS:
            ahead.append(left[labels[target]])
        left[i] = 1 + min(ahead, default=0)
    return left[0]


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
    found = collections.Counter()
    for opcode, *_ in code:
        name, *flags = opcode.split(".")
        if name in opcodes:
            found[str(next((_WIDTHS[flag] for flag in flags if flag in _WIDTHS), 4))] += 1
    return dict(sorted(found.items()))
