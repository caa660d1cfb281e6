"""The steps that are emulated: what a compiler sees, times what it does not.

Cases that differ by data alone share their kernels: compiling takes longer than emulating.
"""

import dataclasses
import itertools

import numpy as np

from pallas_kernels.arithmetic import rules
from tests.gpu.check_step import POISON, SMALL_STEP, Case

BF16, F32, F16 = "bfloat16", "float32", "float16"
RULES = {x.name: x for x in (rules.LION, rules.ADAM, rules.LAMB, rules.LAMB_AMSGRAD)}

TARGETS = "h200", "a100", "b200", "triton-sm_90", "triton-sm_80", "triton-sm_75"
"""What is emulated, of `launching.TARGETS`. B200 computes with pairs of numbers, sm_75 has none of
the instructions for bfloat16."""
MOST = "h200", "triton-sm_90"
"""Those for which everything is emulated."""

PROGRAMS = {
    "tile and rows": dict(shape=(9, 512), p=BF16, g=BF16),
    "counted": dict(shape=(33, 512), p=F32, g=BF16, count_skipped=True),
    "flat": dict(emit="updates", shape=(4097,), p=F32, g=F32, decay="coupled"),
    "float16": dict(shape=(40, 1024), p=F16, g=F16, block=1024, decay=None),
    "mixed": dict(emit="updates", shape=(3, 5, 7, 64), p=BF16, g=F32, block=32),
    "dynamic": dict(shape=(127, 77), p=F32, g=F32, block=128, codec="dynamic"),
    "linear": dict(emit="updates", shape=(17, 1024), p=F16, g=BF16, block=512, codec="linear"),
    "scaled": dict(shape=(5000,), block=64, decay="coupled", change={"grad_scale": 0.37}),
    "a tile": dict(emit="updates", shape=(4096,), p=F32, g=F16, decay=None),
}  # fmt: skip
"""What a compiler sees. Sizes are of whole tiles or not, of whole blocks or not."""

LARGE_BLOCKS = {
    "block 2048": dict(shape=(5, 2048), p=F32, g=BF16, block=2048),
    "block 4096": dict(shape=(13001,), p=BF16, g=BF16, block=4096, count_skipped=True),
}
"""Further ones for Triton."""

ROUNDED = {
    "stochastic": dict(rounding="stochastic", shape=(9, 512), p=BF16, g=BF16, decay=None),
    "compensated": dict(rounding="compensated", shape=(9, 512), p=BF16, g=BF16, decay=None),
    "stochastic, ragged": dict(rounding="stochastic", shape=(127, 77), p=BF16, g=F32, block=128),
    "compensated, ragged": dict(rounding="compensated", shape=(127, 77), p=BF16, g=F32, block=128),
    "stochastic, float16": dict(
        rounding="stochastic", shape=(40, 1024), p=F16, g=F16, block=1024, decay=None
    ),
    "compensated, float16": dict(
        rounding="compensated", shape=(5000,), p=F16, g=BF16, block=64, decay=None
    ),
    "compensated, coupled": dict(
        rounding="compensated", shape=(4097,), p=BF16, g=BF16, decay="coupled"
    ),
}
"""Further ones, of steps that are smaller than half a unit of their parameters."""

EVERYWHERE = "tile and rows", "counted", "dynamic"
"""Those that are emulated for every target."""

DAILY = {
    "h200": (
        # Every rule, on whole rows and on leaves that end within a tile; what is no number.
        "lion/tile and rows/poison",
        "lamb_amsgrad/tile and rows/poison",
        "lion/counted",
        "adam/counted/poison",
        "adam/counted/limits",
        "lamb/counted/poison",
        "lamb/counted/fresh",
        "lamb/counted/lost scales",
        "lion/flat/poison",
        "adam/flat/numbers",
        # Every codec and dtype, and blocks of other sizes.
        "lion/linear/numbers",
        "lamb/dynamic/poison",
        "adam/mixed/poison",
        "lamb/float16/numbers",
        "rounded/lion/compensated/poison",
        "rounded/lamb/stochastic, ragged/numbers",
        "shards with a rest/lion",
        "largest of a block/power signed",
        "end of 2**32 elements/lion",
        "quantize 9x512 power",
        "dequantize 5x7x11x64 power",
    ),
    "a100": ("lamb/counted/poison",),
    "b200": ("lamb/counted/poison",),
    "triton-sm_90": (
        "lion/counted/poison",
        "adam/tile and rows/poison",
        "lamb/counted/poison",
        "quantize 9x512 power",
        "dequantize 9x512",
    ),
}
"""How the names of those begin that are emulated every day. The others are long, see `tests.slow`:
other GPUs, and a second rule, dtype or kind of data for the same code."""

DATA = {
    "numbers": {},
    "poison": dict(poison=POISON | {8200: np.nan}),
    "zeros": dict(zeros=True),
    "fresh": dict(fresh=True),
    "nothing at all": dict(zeros=True, fresh=True),
    "lost scales": dict(poison=POISON, lost=(1, 3)),
}
"""What a kernel is given: gradients that are no numbers, blocks of zeros, scales that are NaN."""


def steps(target):
    """`Case`s by name."""
    found, programs = {}, PROGRAMS
    if target.startswith("triton"):
        programs = PROGRAMS | LARGE_BLOCKS
    for (rule, made), (program, seen), (data, given) in itertools.product(
        RULES.items(), programs.items(), DATA.items()
    ):
        if target in MOST or program in EVERYWHERE:
            case = Case(made, **(dict(emit="params") | seen))
            if case.decay is None and case.emit == "updates" and not made.ratio:
                case = dataclasses.replace(case, has_params=False)
            found[f"{rule}/{program}/{data}"] = dataclasses.replace(case, **given)
    for rule, made in RULES.items():
        most = made.grad_limit
        poison = {7: most, 700: -most, 8200: most * (1 + 2.0**-7)}  # as bfloat16
        case = dataclasses.replace(found[f"{rule}/counted/numbers"], poison=poison)
        found[f"{rule}/counted/limits"] = case
    return found | _rounded()


def _rounded():
    found = {}
    for (rule, made), (program, seen) in itertools.product(RULES.items(), ROUNDED.items()):
        case = Case(made, "params", change=SMALL_STEP, **seen)
        name = f"rounded/{rule}/{program}"
        found[f"{name}/numbers"] = case
        found[f"{name}/poison"] = dataclasses.replace(case, poison=DATA["poison"]["poison"])
        if case.decay is None and not made.ratio:  # else what is no number is all over
            found[f"{name}/odd parameters"] = dataclasses.replace(case, odd=True)
    return found
