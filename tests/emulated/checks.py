"""Checks of emulated kernels, by name: each a function that raises, or says what was seen."""

import functools
import types
import unittest.mock

from tests.emulated import cases, huge, programs, shards, tops
from tests.gpu import check_quantize, check_step, comparing

_RUN = types.SimpleNamespace(interpret=True, tiny=False, quick=False)
"""For checks of `tests.gpu`: small ones, in whatever takes the interpreter's place."""


def of(target):
    """`{name: check}` for a target."""
    found = {name: functools.partial(step, case) for name, case in cases.steps(target).items()}
    if target == cases.TARGETS[0]:
        found |= shards.CHECKS | tops.CHECKS | huge.CHECKS
        found |= dict(_of_suite(check_quantize, check_quantize.checks(_RUN)))
    return found


def long():
    """Further checks, for one target: of leaves that are large for an emulation."""
    found = dict(huge.LONG)
    for rule in cases.RULES.values():
        parts = (x for x in check_step.checks(rule, _RUN) if " have the bits of " in x[0])
        found |= dict(_of_suite(check_step, parts))
    return found


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
    for name, check in checks:

        def run(check=check):
            with unittest.mock.patch.object(module, "INTERPRET", None):
                return check()

        yield name, run
