"""Kernels round parameters as XLA does: in Pallas's interpreter, or on a GPU.

The judge is that of `tests.gpu`: a parameter is a neighbour of what the float64 oracle says, and
with its residual as near as that can tell. Where a step adds the same number, bits are the same.
"""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.arithmetic import params, rules
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import INTERPRET
from tests.gpu import check_step
from tests.gpu.check_step import POISON, SMALL_STEP, Case, Kernels

BF16, F32, F16 = "bfloat16", "float32", "float16"
ROUNDINGS = "stochastic", "compensated"

PROGRAMS = {
    "tile and rows": dict(shape=(9, 512), decay=None),
    "ragged": dict(shape=(127, 77), g=F32, block=128, poison=POISON),
    "float16": dict(shape=(40, 1024), p=F16, g=F16, block=1024, poison=POISON),
    "coupled": dict(shape=(4097,), p=F16, decay="coupled"),
    "odd": dict(shape=(33, 256), decay=None, poison=POISON, odd=True),
    "odd float16": dict(p=F16, decay=None, odd=True),
}
DAILY = {
    ("lion", "tile and rows", "compensated"),
    ("lion", "odd", "stochastic"),
    ("lion", "odd", "compensated"),
    ("lamb", "ragged", "compensated"),
    ("adam", "float16", "stochastic"),
}
RULES = {x.name: x for x in (rules.LION, rules.ADAM, rules.LAMB, rules.LAMB_AMSGRAD)}


def cases(daily):
    """A `Case` for each rule, program and rounding, of which others than `daily` are long."""
    found = []
    names = itertools.product(RULES.items(), PROGRAMS.items(), ROUNDINGS)
    for (name, rule), (program, given), rounding in names:
        if given.get("odd") and rule.ratio:  # what is no number would be all over
            continue
        case = Case(rule, "params", change=SMALL_STEP, rounding=rounding, **given)
        marks = [] if (name, program, rounding) in daily else [pytest.mark.long]
        found.append(pytest.param(case, id=f"{name}-{program}-{rounding}", marks=marks))
    return found


def kernels(interpret):
    """Mosaic's."""
    return Kernels(
        *(functools.partial(x, interpret=interpret) for x in (mosaic.step, mosaic.moments))
    )


RUN = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(kernels(INTERPRET), id="interpreted"),
        pytest.param(kernels(None), id="gpu", marks=pytest.mark.gpu),
    ],
)


@RUN
@pytest.mark.parametrize("case", cases(DAILY))
def test_parameters_are_rounded_as_the_oracle_and_xla_say(kernels, case):
    check_step.check(case, kernels)


def in_parts(kernels=None):
    """Checks of a step in pieces and in shards, by name; of Mosaic's kernels, if no others."""
    run = types.SimpleNamespace(interpret=True, tiny=False, quick=False)
    found = dict(check_step.checks(rules.LION, run, kernels))
    return {name: x for name, x in found.items() if " have the parameters of the leaf" in name}


@pytest.mark.long
@pytest.mark.parametrize("name", in_parts())
def test_parts_of_a_leaf_are_rounded_as_the_leaf_is(name):
    in_parts()[name]()


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("rounded", [params.stochastic, params.compensated])
def test_the_nan_that_a_gpu_computes_is_stored_as_nan(rounded, dtype):
    """All of its bits but the sign are ones, so any number that is added would make zero of it."""
    x = jnp.full(4, 0x7FFFFFFF, jnp.int32).view(jnp.float32)
    bits = jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32)
    made = jax.jit(lambda x, bits: rounded(x, jnp.dtype(dtype), bits))(x, bits)
    assert jnp.isnan(made[0] if rounded is params.compensated else made).all()
