"""Kernels as compiled for GPUs that are not there, executed and judged."""

import pytest

from pallas_kernels.mosaic import tile as mosaic
from pallas_kernels.triton import tile as triton
from tests import oracles
from tests.emulated import cases, checks

pytestmark = pytest.mark.deviceless


def _names(found):
    return [
        pytest.param(target, name, id=f"{target}-{name}")
        for target in cases.TARGETS
        for name in found(target)
    ]


def assert_right(seen):
    """At both ends of the error of approximate instructions, and between."""
    wrong = {end: x["error"] for end, x in seen.items() if "error" in x}
    assert not wrong, "\n".join(f"{end}: {error}" for end, error in wrong.items())
    assert set(seen) == {"nearest", "low", "high"}


@pytest.mark.parametrize("target, name", _names(checks.of))
def test_an_emulated_kernel_is_right(seen_of, target, name):
    assert_right(seen_of(target)[name])


@pytest.mark.parametrize("target, name", _names(checks.long))
def test_more_emulated_kernels_are_right(seen_in_long, target, name):
    assert_right(seen_in_long(target)[name])


def test_every_daily_name_is_that_of_a_check():
    for target, beginnings in cases.DAILY.items():
        names = list(checks.of(target))
        assert [x for x in beginnings if not any(name.startswith(x) for name in names)] == []


@pytest.mark.parametrize("target", cases.MOST)
def test_the_cases_are_what_they_are_meant_to_be(target):
    steps = cases.steps(target).values()
    assert len(steps) >= 150
    by_mosaic = not checks.is_triton(target)
    for rule in cases.RULES.values():
        own = [x for x in steps if x.rule is rule]
        assert {x.codec for x in own} == set(oracles.CODECS)
        assert {x.block for x in own} >= set((mosaic if by_mosaic else triton).BLOCK_SIZES)
        assert {x.emit for x in own} == {"params", "updates"}
        assert {x.decay for x in own} == {"decoupled", "coupled", None}
        assert {x.p for x in own} == {x.g for x in own} == {"float32", "bfloat16", "float16"}


KERNELS = {"lion_step", "adam_step"} | {
    f"{rule}_{half}" for rule in ("lamb", "lamb_amsgrad") for half in ("moments", "apply")
}


OTHERS = {"lion_signs", "adam_moments", "quantize", "dequantize"}


def test_every_kernel_was_launched(seen_of):
    """Under its own name, and not one that takes its place."""
    expected = {f"{name}_mosaic_gpu_kernel" for name in KERNELS | OTHERS}
    assert expected <= _launched(seen_of("h200"))


@pytest.mark.long
@pytest.mark.parametrize("target", cases.TARGETS)
def test_every_kernel_was_launched_for_every_target(seen_of, seen_in_long, target):
    launched = _launched(seen_of(target)) | _launched(seen_in_long(target))
    if checks.is_triton(target):
        assert launched >= KERNELS | OTHERS
    else:
        expected = KERNELS | (OTHERS if target == "h200" else set())
        assert launched >= {f"{name}_mosaic_gpu_kernel" for name in expected}


def _launched(seen):
    return {name for ends in seen.values() for x in ends.values() for name in x["launched"]}
