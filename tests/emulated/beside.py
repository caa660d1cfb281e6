"""The same steps by Mosaic's kernels and by Triton's: codes differ at ties alone."""

import functools
import itertools

import jax
import numpy as np

from tests import oracles
from tests.emulated import cases, programs
from tests.gpu import comparing

PROGRAMS = "tile and rows", "counted", "dynamic", "linear", "flat"
DATA = "numbers", "poison", "fresh"


def _check(case):
    """Both are judged beside XLA, so that each code is right or beside a tie; then each other's."""
    given, spec = comparing.inputs(case), comparing.spec(case)
    general = programs.general(spec)(*given)
    both = [jax.device_get(programs.kernels(spec, x)(*given)) for x in ("mosaic", "triton")]
    for made in both:
        comparing.judge(case, given, made, general)
    mosaic, triton = both
    seen, size = {}, np.size(mosaic.out)
    for i, slot in enumerate(case.rule.slots):
        codes = [np.asarray(made.slots[i]) for made in both]
        rungs = [oracles.ranks(x, case.codec, slot.signed) for x in codes]
        apart = np.abs(np.subtract(*rungs))
        assert apart.max() <= 1
        # Each may be off from XLA's at a tie, and there are as few of these as the judge allows.
        assert apart.sum() <= 16 + 8 * comparing.CUBE_TIE * size
        scales = [np.asarray(made.absmaxes[i]).reshape(-1) for made in both]
        ulps = np.abs(np.subtract(*(x.view(np.int32) for x in scales)))
        seen[f"{slot.name}_codes_that_differ"] = int(apart.sum())
        seen[f"{slot.name}_absmax_ulps"] = int(ulps[np.isfinite(scales[0])].max(initial=0))
    differ = np.asarray(mosaic.out != triton.out) & ~np.isnan(np.asarray(mosaic.out))
    return seen | {"size": size, "results_that_differ": int(differ.sum())}


def checks():
    """By name."""
    known = cases.steps("h200")
    names = (
        f"{rule}/{x}/{data}" for rule, x, data in itertools.product(cases.RULES, PROGRAMS, DATA)
    )
    return {f"beside Mosaic/{name}": functools.partial(_check, known[name]) for name in names}
