"""Checks of emulated kernels, by name: each a function that raises, or says what was seen."""

import functools
import types
import unittest.mock

from tests.emulated import beside, cases, huge, programs, shards, tops
from tests.gpu import check_quantize, check_step, comparing

_RUN = types.SimpleNamespace(interpret=True, tiny=False, quick=False)
"""For checks of `tests.gpu`: small ones, in whatever takes the interpreter's place."""


def of(target):
    """`{name: check}` for a target: those of every day."""
    return {name: check for name, check in _every(target).items() if _is_daily(target, name)}


def long(target):
    """Further checks for a target, which take long to compile or are large for an emulation."""
    found = {name: check for name, check in _every(target).items() if not _is_daily(target, name)}
    if target in cases.MOST:
        found |= huge.LONG
    for rule in cases.RULES.values():
        for name, check in _of_suite(check_step, check_step.checks(rule, _RUN)).items():
            if is_triton(target) or (target in cases.MOST and " have the " in name):
                found[name] = check
    return found


def is_triton(target):
    """Whether Triton compiles for it."""
    return target.startswith("triton")


def _every(target):
    found = {name: functools.partial(step, case) for name, case in cases.steps(target).items()}
    if target in cases.MOST:
        found |= shards.CHECKS | tops.CHECKS | huge.CHECKS
    if target == "triton-sm_90":
        found |= huge.MASKED | beside.checks()
    if target in cases.MOST or is_triton(target):
        found |= _of_suite(check_quantize, check_quantize.checks(_RUN))
    return found


def _is_daily(target, name):
    return name.startswith(cases.DAILY.get(target, ()))


def program(name):
    """What checks of other names share their kernels with."""
    return name.rpartition("/")[0] or name


def step(case):
    """The kernels' step beside XLA's, both judged in float64."""
    given = comparing.inputs(case)
    kernel, general = (made(*given) for made in programs.steps(comparing.spec(case)))
    seen = comparing.judge(case, given, kernel, general)
    tops.check_step(case, kernel)
    return seen


def _of_suite(module, checks):
    """Checks of the GPU's suite, whose kernels are neither on a GPU nor interpreted here."""
    found = {}
    for name, check in checks:

        def run(check=check):
            entry = programs.implementation()
            kernels = entry.steps if module is check_step else entry.arrays
            with unittest.mock.patch.multiple(
                module, INTERPRET=None, mosaic=_without_interpreter(kernels)
            ):
                return check()

        found[name] = run
    return found


def _without_interpreter(module):
    """Functions of a module of kernels that may be told which interpreter to take: none."""

    def of(name, function):
        def call(*args, interpret):
            assert interpret is None
            static = zip(_STATIC.get(name, ()), args[2:], strict=True)
            return function(*args[:2], **dict(static))

        return call

    return types.SimpleNamespace(**{k: of(k, f) for k, f in vars(module).items() if callable(f)})


_STATIC = {"quantize": ("block_size", "codec", "keep_nonzero")}
_STATIC["dequantize"] = "block_size", "codec", "dtype"
"""Names of arguments that are no arrays."""
