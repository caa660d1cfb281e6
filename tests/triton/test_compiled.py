"""What Triton and the assemblers of NVIDIA and AMD make of the kernels of steps.

A leaf that ends within a tile has the kernel of a whole one, and a second one for its last tile.
"""

import itertools
import re

import pytest

from tests.deviceless import sharing
from tests.triton import compiling, steps

pytestmark = pytest.mark.deviceless

AMD = "gfx942"
GPUS = (*compiling.ARCHITECTURES, AMD)
STEPS = list(itertools.product(steps.RULES, steps.DTYPES, steps.SHAPES, steps.CODECS))
# The GPU that most figures are of, and one rule on the oldest and on AMD's, with the codec that
# takes most. The programs of `tests/deviceless` have the default one.
EVERY_DAY = [
    (gpu, (rule, "bf16", "ragged", "dynamic"))
    for gpu, rule in [*((90, rule) for rule in steps.RULES), (75, "lion"), (AMD, "lion")]
]
ALL = [
    pytest.param(gpu, step, marks=[] if (gpu, step) in EVERY_DAY else pytest.mark.long)
    for gpu, step in itertools.product(GPUS, STEPS)
]
ASIDE = 16
"""Bytes that the assembler may store and load, so that one more block of threads has room.

Seen of two kernels of ragged leaves: `lamb_amsgrad_moments` (float32, "power") on sm_86 and sm_89,
and `lion_step` (float32, "linear") on sm_90.
"""


@pytest.fixture(autouse=True)
def _compilers():
    sharing.need_compilers()


def words(value):
    """What pytest calls a step."""
    return "-".join(value) if isinstance(value, tuple) else None


@pytest.mark.parametrize("gpu, step", ALL, ids=words)
def test_kernels_do_not_spill(gpu, step):
    rule, dtypes, shape, codec = step
    for name, kernel in steps.of_step(rule, dtypes, shape, codec, decay="decoupled").items():
        if gpu == AMD:
            found = compiling.amd_facts(kernel)
            assert found["spilled"] == found["scratch_bytes"] == 0, (name, found)
            continue
        code = compiling.facts(kernel, gpu)
        assert code["spilled_bytes"] <= ASIDE, name
        assert code["loops"] == 0, name
        # A tile with nothing to skip does not come by what is put aside, nor by calls, which are
        # for divisions of numbers that are not normal.
        assert not re.search(r"\b(STL|LDL|CALL)\b", " ".join(code["way"])), name


ROUNDED = {
    (75, "lion", "compensated"): 8,
    (90, "lion", "stochastic"): 6,
    (90, "lamb", "compensated"): 8,
}
"""How many instructions more than to the nearest parameter."""


@pytest.mark.parametrize("gpu, rule, rounding", ROUNDED)
def test_parameters_are_rounded_by_few_instructions(gpu, rule, rounding):
    nearest, rounded = (
        steps.of_step(rule, "bf16", rounding=x)[f"{rule}_{'apply' if rule == 'lamb' else 'step'}"]
        for x in ("nearest", rounding)
    )
    count, before = (compiling.instructions(x, gpu) for x in (rounded, nearest))
    assert 0 < count - before <= ROUNDED[gpu, rule, rounding]
    assert compiling.facts(rounded, gpu)["spilled_bytes"] == 0


@pytest.mark.parametrize("name, dtype, most", [("lion_step", "bf16", 37), ("lion_step", "f32", 36)])
def test_a_step_of_lion_has_few_instructions(name, dtype, most):
    kernel = steps.of_step("lion", dtype)[name]
    assert 20 < compiling.instructions(kernel) <= most


@pytest.mark.parametrize("rule", ["lion", "adam", "lamb"])
def test_what_is_counted_is_the_way_of_tiles_without_anything_to_skip(rule):
    """On the other one, each of a thread's elements is compared with the rule's limit."""
    limit = str(float(steps.kernels.RULES[rule].grad_limit))
    for name, kernel in steps.of_step(rule, "bf16").items():
        everywhere, counted = compiling.facts(kernel)["numbers"][limit]
        assert everywhere >= 8 and counted == 0, name


@pytest.mark.parametrize("dtype, size", [("bf16", 2), ("f32", 4)])
def test_parameters_and_gradients_move_16_bytes_at_a_time(dtype, size):
    kernel = steps.of_step("lion", dtype)["lion_step"]
    code = compiling.facts(kernel)
    pieces = compiling.elements_of_a_thread(kernel) * size // 16
    # Both are read, and parameters written, on either of the two ways.
    assert code["load_widths"]["16"] >= 2 * pieces
    assert code["store_widths"]["16"] >= 2 * pieces


@pytest.mark.parametrize(
    "gpu", [pytest.param(x, marks=() if x in (90, AMD) else pytest.mark.long) for x in GPUS]
)
def test_quantization_does_not_spill(gpu):
    for name, kernel in steps.of_quantization("bf16").items():
        if gpu == AMD:
            found = compiling.amd_facts(kernel)
            assert found["spilled"] == found["scratch_bytes"] == 0, name
        else:
            assert compiling.facts(kernel, gpu)["spilled_bytes"] == 0, name
