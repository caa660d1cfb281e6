"""The checks of steps and of quantization for Triton's kernels, where jax-triton is installed."""

import functools

from pallas_kernels.arithmetic import rules
from pallas_kernels.triton import installed
from pallas_kernels.triton import step as triton
from tests.gpu import check_quantize, check_step
from tests.gpu.records import Skipped

_RULES = {x.name: x for x in (rules.LION, rules.ADAM, rules.LAMB, rules.LAMB_AMSGRAD)}


def why_not(run):
    """Why a run has none of these kernels; None if it has."""
    return installed.why_not() or ("they have no interpreter" if run.interpret else None)


def steps(rule, run):
    """As `check_step.checks`, of the rule of that name."""
    kernels = check_step.Kernels(triton.step, triton.moments)
    return _unless_missing(run, check_step.checks(_RULES[rule], run, kernels))


def quantization(run):
    """As `check_quantize.checks`."""
    return _unless_missing(run, check_quantize.checks(run, "triton"))


def _unless_missing(run, checks):
    if reason := why_not(run):
        return [("Triton's kernels", functools.partial(_skip, reason))]
    return checks


def _skip(reason):
    raise Skipped(reason)
