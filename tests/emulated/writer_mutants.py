"""Breaks one thing at a time that the writer of Triton kernels does: do faults and judges notice?

    JAX_PLATFORMS=cpu python -m tests.emulated.writer_mutants [MUTANT ...] [--out FILE]

What is broken is a rule, which says how Triton does what a primitive does, or something in the
source of every kernel. Each mutant goes through `CHECKS` that it makes a difference to, up to the
first that notices it. Of a mutant is said

- `judge`, `fault` or `refused`, and by which check: a number was wrong, or an access to memory; or
  the kernel could not be written, compiled or emulated;
- `lives`: no check noticed it;
- `not met`: it changes nothing in any check.

A name stands for all mutants that begin with it. With `--out FILE` this is written as JSON.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import unittest.mock
from typing import NamedTuple

TARGET = "triton-sm_90"
LIVES, NOT_MET = "lives", "not met"
CHECKS = (
    "lion/counted/poison",
    "lion/counted/limits",
    "lamb/counted/poison",
    "lion/flat/numbers",
    "lamb/dynamic/numbers",
    "adam/linear/fresh",
    "lamb_amsgrad/mixed/numbers",
    "quantize 9x512 power signed seed=7",
    "quantize 4099 dynamic unsigned seed=7",
    "stack/lamb/params",
    "pieces have the bits of the leaf: lion updates 66x2048",
    "end of 2**32 elements/lion/bfloat16",
)
"""How the names of checks begin, of `tests.emulated.checks`."""

_SIGNED = "{0}.to(tl.int32, bitcast=True)"
RULES = {
    "add: minus": ("add", "{} - {}"),
    "sub: the other way": ("sub", "{1} - {0}"),
    "mul: plus": ("mul", "{} + {}"),
    "neg: left out": ("neg", "{}"),
    "abs: left out": ("abs", "{}"),
    "max: min": ("max", "tl.minimum({}, {}, propagate_nan=tl.PropagateNan.ALL)"),
    "max: loses NaN": ("max", "tl.maximum({}, {}, propagate_nan=tl.PropagateNan.NONE)"),
    "min: max": ("min", "tl.maximum({}, {}, propagate_nan=tl.PropagateNan.ALL)"),
    "min: loses NaN": ("min", "tl.minimum({}, {}, propagate_nan=tl.PropagateNan.NONE)"),
    "div: the other way": ("div", "tl.div_rn({1}, {0})"),
    "div: not rounded right": ("div", "({} / {})"),
    "rem: quotient": ("rem", "{} // {}"),
    "sqrt: left out": ("sqrt", "{}"),
    "sqrt: its inverse": ("sqrt", "tl.rsqrt({})"),
    "exp2: another base": ("exp2", "tl.exp({})"),
    "log2: another base": ("log2", "log2({}) * 0.6931471805599453"),
    "and: or": ("and", "{} | {}"),
    "or: and": ("or", "{} & {}"),
    "or: xor": ("or", "{} ^ {}"),
    "xor: or": ("xor", "{} | {}"),
    "not: left out": ("not", "{}"),
    "shift_left: right": ("shift_left", "{} >> {}"),
    "shift_left: one more": ("shift_left", "{} << ({} + 1)"),
    "shift_right_logical: with signs": (
        "shift_right_logical", f"({_SIGNED} >> {{1}}).to(tl.uint32, bitcast=True)"
    ),
    "shift_right_logical: left": ("shift_right_logical", "{} << {}"),
    "shift_right_arithmetic: left": ("shift_right_arithmetic", "{} << {}"),
    "lt: le": ("lt", "{} <= {}"),
    "lt: true of NaN": ("lt", "({0} < {1}) | ({0} != {0})"),
    "le: lt": ("le", "{} < {}"),
    "le: true of NaN": ("le", "({0} <= {1}) | ({0} != {0})"),
    "gt: ge": ("gt", "{} >= {}"),
    "gt: lt": ("gt", "{} < {}"),
    "ge: gt": ("ge", "{} > {}"),
    "ge: lt": ("ge", "{} < {}"),
    "eq: ne": ("eq", "{} != {}"),
    "ne: eq": ("ne", "{} == {}"),
    "select_n: the other way": ("select_n", "tl.where({}, {}, {})"),
    "squeeze: another number": ("squeeze", "({} + 2**20)"),  # of the bits of a number
    "convert_element_type: one more": ("convert_element_type", lambda text: f"({text} + 1)"),
    "convert_element_type: bits": (
        "convert_element_type", lambda text: text.replace("tl.int8", "tl.uint8")
    ),
    "bitcast_convert_type: as a number": (
        "bitcast_convert_type", lambda text: text.replace(", bitcast=True", "")
    ),
    "broadcast_in_dim: another axis": (
        "broadcast_in_dim", lambda text: text.replace("[None, :, None]", "[None, None, :]")
    ),
    "iota: one more": ("iota", lambda text: f"({text} + 1)"),
    "iota: another axis": (
        "iota", lambda text: {"r": "column", "c": "row[None, :, None]"}[text[0]] + text[-14:]
    ),
    "reduce_max: the other axis first": (
        "reduce_max", lambda text: text.replace(", 0, largest), 1,", ", 2, largest), 1,")
    ),
    "reduce_max: loses NaN": (
        "reduce_max", lambda text: text.replace("tl.reduce", "tl.max").replace(", largest", "")
    ),
    "reduce_max: a sum": (
        "reduce_max", lambda text: text.replace("tl.reduce", "tl.sum").replace(", largest", "")
    ),
    "reduce_sum: a maximum": ("reduce_sum", lambda text: text.replace("tl.sum", "tl.max", 1)),
    "reduce_sum: without the last": (
        "reduce_sum", lambda text: re.sub(r"tl\.sum\((\w+), 0\)", r"tl.sum(\1 * (\1 < 3), 0)", text)
    ),
}  # fmt: skip
"""Of a rule: its primitive, and the text that it writes instead or a function of what it writes."""

SOURCES = {
    "load: no mask": (r"(tl\.load\([^()]*), mask=inside, other=0", r"\1"),
    "load: no mask of blocks": (r"(tl\.load\([^()]*), mask=blocks_inside, other=0", r"\1"),
    "load: other=1": ("other=0", "other=1"),
    "store: no mask": (r"(tl\.store.*), mask=inside", r"\1"),
    "store: no mask of blocks": (r"(tl\.store.*), mask=blocks_inside", r"\1"),
    "inside: one more": ("inside = at < left", "inside = at <= left"),
    "inside: one less": ("inside = at < left", "inside = at + 1 < left"),
    "blocks_inside: one more": (r"blocks_inside = row <", "blocks_inside = row <="),
    "blocks_inside: one less": (r"blocks_inside = row <", "blocks_inside = row + 1 <"),
    "vectors: always whole": (
        r"inside = at", "left = tl.multiple_of(left, 8)\n        inside = at"
    ),
    "vectors: no hint": (r"(?m)^ *at = tl\.max_contiguous.*\n", ""),
    "the last tile: as others": (r"if tile < (\d+):", r"if tile < \1 + 1:"),
    "the last tile: one more": (r"if tile < (\d+):", r"if tile < \1 - 1:"),
    "first: 32 bits": (r"first = tile\.to\(tl\.int64\)", "first = tile"),
    "column: no span": (r"column = (.*) \* \d+", r"column = \1"),
    "the piece: from its start": (r"in_leaf = first \+ .*", "in_leaf = first"),
    "the branch: turned": (r"if (v\d+) != 0:", r"if \1 == 0:"),
    "the branch: never taken": (r"if (v\d+) != 0:", r"if \1 > 1:"),
    "sums: beyond the end": (r"tl\.where\(inside, (v\d+), v\d+\)", r"\1"),
    "sums: of another tile": (r"tl\.store\(sums \+ tile", "tl.store(sums + 0 * tile"),
    "a scalar: the next one": (r"tl\.load\(floats \+ 1\)", "tl.load(floats + 2)"),
    "numbers: six digits": (r"\d\.\d{8,}(?![\de])", lambda x: f"{float(x[0]):.6g}"),
    "numbers: as float16": (
        r"\d\.\d{8,}(?![\de])", lambda x: f"tl.full((), {x[0]}, tl.float16).to(tl.float32)"
    ),
    "numbers: 31 bits": (r"(tl\.full\(\(\), \d+), tl\.uint32", r"\1 % 2**31, tl.uint32"),
    "infinity: the largest number": (r'float\("inf"\)', "3.4028234663852886e38"),
}  # fmt: skip
"""Of a change in the source of kernels: what is replaced, and by what, as of `re.sub`."""


@contextlib.contextmanager
def _rule(primitive, instead):
    from pallas_kernels.triton import rules

    original = rules.RULES[primitive]

    def rule(equation):
        text, shape = original(equation)
        if callable(instead) and text in equation.texts:  # a value that has another name
            return text, shape
        return instead(text) if callable(instead) else instead.format(*equation.texts), shape

    with unittest.mock.patch.dict(rules.RULES, {primitive: rule}):
        yield


@contextlib.contextmanager
def _source(change):
    from pallas_kernels.triton import launch

    original = launch._kernel

    def kernel(*args):
        made = original(*args)
        return made._replace(source=change(made.source))

    with unittest.mock.patch.object(launch, "_kernel", kernel):
        yield


@contextlib.contextmanager
def _power(change):
    from pallas_kernels.triton.writer import Writer

    original = Writer._power

    def power(self, x, n):
        return original(self, x, change(n))

    with unittest.mock.patch.object(Writer, "_power", power):
        yield


def _mutants():
    """By name, a function that returns a context in which the mutant is there."""
    found = {}
    for name, (primitive, instead) in RULES.items():
        found[name] = lambda x=primitive, y=instead: _rule(x, y)
    for name, (pattern, instead) in SOURCES.items():
        found[name] = lambda x=pattern, y=instead: _source(lambda text: re.sub(x, y, text))
    found["power: one more"] = lambda: _power(lambda n: n + 1)
    return found


MUTANTS = _mutants()

ALIVE = {
    "min: loses NaN": "it is taken of NaN only in blocks whose scale is NaN, and all is lost",
    "or: xor": "what is put together has no bits in common",
    "the branch: never taken": "the general way is right in any case, and takes longer",
    "the last tile: one more": "with masks, a tile that is whole is right, too",
    "infinity: the largest number": "no check has a number that tells them apart",
    "sums: beyond the end": "the direction of zeros is zero, unless eps is",
    "vectors: no hint": "threads hold other elements, and exchange them",
}
"""Those that no check notices, and why."""
UNMET = {
    "rem: quotient": "no kernel has a remainder",
    "not: left out": "no kernel has a negation of bits",
    "shift_right_arithmetic: left": "kernels shift bits alone",
}
"""Those that change no kernel."""


class _Tried(NamedTuple):
    """What became of a check."""

    how: str | None
    """How it was noticed; None if it was not."""
    sources: list[str]
    """Of the kernels."""
    error: str | None = None
    """That it was refused with."""


def _try(emulation, check):
    from tests.emulated import programs

    programs.kernels.cache_clear()
    emulation.fault, sources, how, why = None, [], None, None
    with _source(lambda text: sources.append(text) or text):
        try:
            check()
        except AssertionError:
            how = "judge"
        except Exception as error:  # of the writer, of Triton, or of the emulator
            how, why = "refused", f"{type(error).__name__}: {error}"[:300]
    how = "fault" if emulation.fault else how
    if how is None and not sources:
        raise RuntimeError("JAX has remembered what the kernel was.")
    return _Tried(how, sources, why)


def _unmapped():
    """A context in which JAX does not remember kernels, as it does those of `sequential_vmap`."""
    from pallas_kernels.tiled import step as tiled
    from pallas_kernels.triton import step as triton
    from pallas_kernels.triton.launch import BACKEND

    return unittest.mock.patch.multiple(
        triton,
        step=functools.partial(tiled.step, BACKEND),
        moments=functools.partial(tiled.moments, BACKEND),
        apply=functools.partial(tiled.apply, BACKEND),
    )


def run(emulation, names):
    """`{mutant: {"how": ..., "by": the check or None}}`."""
    from tests.emulated import checks as all_checks

    known = all_checks.of(TARGET) | all_checks.long(TARGET)
    checks = {name: next(k for k in known if k.startswith(name)) for name in CHECKS}
    right = {}
    for name, full in checks.items():
        right[name] = _try(emulation, known[full])
        if right[name].how:
            raise RuntimeError(f"{full} fails without any mutant: {right[name].how}")
    found = {}
    for mutant in names:
        found[mutant] = {"how": NOT_MET, "by": None}
        for name, full in checks.items():
            with MUTANTS[mutant]():
                tried = _try(emulation, known[full])
            if tried.sources == right[name].sources and tried.how is None:
                continue
            found[mutant] = {"how": tried.how or LIVES, "by": tried.how and full}
            if tried.error:
                found[mutant]["error"] = tried.error
            if tried.how:
                break
        print(f"{found[mutant]['how']:8} {mutant:40} {found[mutant]['by'] or ''}", flush=True)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mutants", nargs="*", default=[""], help="default: all")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_intermixed_args(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"
    from tests.emulated import launching

    names = [name for name in MUTANTS if name.startswith(tuple(args.mutants))]
    with _unmapped(), launching.emulated(TARGET) as emulation:
        found = run(emulation, names)
    print(dict(collections.Counter(x["how"] for x in found.values())))
    if args.out:
        part = args.out.with_name(args.out.name + ".part")
        part.write_text(json.dumps(found, indent=1))
        part.replace(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
