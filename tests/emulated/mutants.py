"""Breaks one instruction of a compiled kernel at a time: do faults and judges notice?

    JAX_PLATFORMS=cpu python -m tests.emulated.mutants h200 [KERNEL ...] [--of-a-kind N]

A mutant that lives is without effect on what it was given (every bit of the result is the same), or
its result is within the bounds of the judges. Both are listed. `--out FILE` writes
`{kernel: {mutant: how}}` as JSON, where `how` is "judge", "fault", "no effect" or "within bounds".
"""

import argparse
import collections
import copy
import dataclasses
import json
import os
import pathlib
import random
import re
import sys
import tempfile

from tests.deviceless import dump
from tests.emulated.ptx import Instruction

RULES = {"lion_step": "lion", "adam_step": "adam", "lamb_moments": "lamb", "lamb_apply": "lamb"}
"""Of the kernels that are broken."""
PROGRAM, DATA = "counted", ("poison", "fresh")
"""What they are given: tiles with elements that are to be skipped and tiles without, then a fresh
state, in which many second moments are a small part of their block's. Of `tests.emulated.cases`."""
NO_EFFECT = "no effect"
OF_A_KIND = 3
"""How many mutants of a kind are tried by default."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A kernel with another instruction in a place."""

    kind: str
    place: int
    instruction: Instruction

    def name(self, kernel):
        """What was changed where."""
        old = kernel.code[self.place]
        return f"{self.kind}, line {old.line}: {old.text}"

    def of(self, compiled):
        """The mutant of a `Compiled`."""
        kernel = copy.copy(compiled.kernel)
        kernel.code = list(kernel.code)
        kernel.code[self.place] = self.instruction
        steps = compiled.steps.with_another(self.place, self.instruction)
        return dataclasses.replace(compiled, kernel=kernel, steps=steps)


# ------------------------------------------------------------------------- what may be changed


def _named(x, name, *modifiers):
    return dataclasses.replace(x, name=name, modifiers=modifiers or x.modifiers)


def _operand(x, i, operand):
    operands = list(x.operands)
    operands[i] = operand
    return dataclasses.replace(x, operands=tuple(operands))


def _swapped(x):
    target, a, b, *others = x.operands
    return dataclasses.replace(x, operands=(target, b, a, *others))


def _constant(x):
    """A number off by less than a hundredth."""
    for i, operand in enumerate(x.operands):
        if isinstance(operand, str) and re.fullmatch("0f[0-9A-F]{8}", operand):
            if int(operand[2:], 16) % 2**31:
                return _operand(x, i, f"0f{int(operand[2:], 16) ^ 1 << 16:08X}")
    return None


def _address(x):
    i = 0 if x.name == "st" else 1
    base, offset = re.fullmatch(r"\[([%\w$]+)(?:\+(-?\d+))?\]", x.operands[i]).groups()
    return _operand(x, i, f"[{base}+{int(offset or 0) + 16}]")


def _number(x, i, change):
    operand = x.operands[i]
    number = re.fullmatch(r"-?(\d+|0[xX][\da-fA-F]+)U?", operand)
    return number and _operand(x, i, str(change(int(operand.removesuffix("U"), 0))))


_OPPOSITE = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le", "eq": "ne", "ne": "eq", "neu": "eq"}
REMOVED = Instruction("fence", (), (), None, 0, "removed")
"""In place of an instruction."""
KINDS = {
    "a barrier removed": (("bar",), lambda x: REMOVED),
    "a constant": (("fma", "add", "mul", "sub"), _constant),
    "add and sub": (("add",), lambda x: _named(x, "sub")),
    "sub the other way": (("sub",), _swapped),
    "a square": (("mul",), lambda x: _operand(x, 2, x.operands[1])),
    "another summand": (("fma",), lambda x: _operand(x, 3, x.operands[1])),
    "max and min": (
        ("max", "min"), lambda x: _named(x, {"max": "min", "min": "max"}[x.name])
    ),
    "a choice swapped": (("selp",), _swapped),
    "another byte": (("prmt",), lambda x: _number(x, 3, lambda n: n ^ 1)),
    "16 bytes on": (("ld", "st"), lambda x: None if "param::entry" in x.modifiers else _address(x)),
    "another lane": (("shfl",), lambda x: _number(x, 2, lambda n: n ^ 16)),
    "and, or, xor": (
        ("and", "or", "xor"), lambda x: _named(x, {"and": "or", "or": "xor", "xor": "and"}[x.name])
    ),
    "another comparison": (
        ("setp",), lambda x: _named(x, "setp", _OPPOSITE[x.modifiers[0]], *x.modifiers[1:])
    ),
    "a function left out": (
        ("ex2", "lg2", "rcp", "sqrt"), lambda x: _named(x, "mov", "b32")
    ),
    "a shift": (("shr", "shl"), lambda x: _number(x, 2, lambda n: n + 1)),
    "a sign": (("abs", "neg"), lambda x: _named(x, "mov", "b32")),
    "a branch turned": (
        ("bra",), lambda x: x.guard and dataclasses.replace(x, guard=(x.guard[0], not x.guard[1]))
    ),
    "a conversion": (
        ("cvt",), lambda x: _named(x, "cvt", "rn", "f32", "u16") if "s16" in x.modifiers else None
    ),
    "halves swapped": (("cvt",), lambda x: _swapped(x) if len(x.operands) == 3 else None),
}  # fmt: skip
"""For each kind the instructions that it is for, and a function of one; it returns None where there
is nothing to change."""


def mutants(kernel, of_a_kind, seed=0):
    """So many mutants of each kind, chosen at random, or all if there are no more."""
    rng, found = random.Random(seed), []
    for kind, (names, change) in KINDS.items():
        every = [
            Mutant(kind, place, changed)
            for place, x in enumerate(kernel.code)
            if x.name in names and (changed := change(x)) not in (None, x)
        ]
        found += rng.sample(every, min(of_a_kind, len(every)))
    return found


# -------------------------------------------------------------------------------- what is noticed


class Step:
    """A step that is right, beside which that of a broken kernel is judged."""

    def __init__(self, case):
        from tests.emulated import programs
        from tests.gpu import comparing

        self._case, self._given = case, comparing.inputs(case)
        self._by_kernels, by_xla = programs.steps(comparing.spec(case))
        self._general, self._right = by_xla(*self._given), self.made()

    def made(self):
        """What kernels make of it now."""
        import jax

        return jax.device_get(self._by_kernels(*self._given))

    def how(self, emulation):
        """How it is noticed what the kernels are, or why it is not."""
        from tests.emulated import tops
        from tests.gpu import comparing

        emulation.fault = None
        made = self.made()
        if emulation.fault:
            return "fault"
        try:
            comparing.judge(self._case, self._given, made, self._general)
            tops.check_step(self._case, made)
        except AssertionError:
            return "judge"
        return NO_EFFECT if _bits(made) == _bits(self._right) else "within bounds"


def try_mutants(emulation, kernel_name, of_a_kind):
    """`{mutant: how it was noticed, or lived}` of a kernel."""
    from tests.emulated import cases

    launched, known = [], cases.steps("h200")
    with emulation.changed(lambda x: launched.append(x) or x):
        steps = [Step(known[f"{RULES[kernel_name]}/{PROGRAM}/{data}"]) for data in DATA]
    names = kernel_name, f"{kernel_name}_mosaic_gpu_kernel"
    original = next(x for x in launched if x.kernel.name in names)
    found = {}
    for mutant in mutants(original.kernel, of_a_kind):
        broken = mutant.of(original)
        with emulation.changed(lambda x, y=broken: y if x.kernel is original.kernel else x):
            every = (step.how(emulation) for step in steps)
            # The first that tells something.
            found[mutant.name(original.kernel)] = next(filter(NO_EFFECT.__ne__, every), NO_EFFECT)
    return found


def _bits(made):
    import jax

    return [x.tobytes() for x in jax.tree.leaves(made)]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("kernels", nargs="*", default=list(RULES))
    parser.add_argument("--of-a-kind", type=int, default=OF_A_KIND)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_PLATFORMS"] = "cpu"
        dump.start(folder)
        from tests.emulated import launching

        results = {}
        with launching.emulated(args.target) as emulation:
            for name in args.kernels:
                results[name] = try_mutants(emulation, name, args.of_a_kind)
                _print(name, results[name])
    if args.out:
        part = args.out.with_name(args.out.name + ".part")
        part.write_text(json.dumps(results, indent=1))
        part.replace(args.out)
    return 0


def _print(name, found):
    print(f"{name}: {dict(collections.Counter(found.values()))}")
    for mutant, how in found.items():
        if how not in ("judge", "fault"):
            print(f"  {how}: {mutant}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
