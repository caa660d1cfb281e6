"""What clipping costs a compiled step: one pass over the gradients for their norm, or none."""

import pytest

from tests.deviceless import cases, clipped, meshes, paged
from tests.deviceless.compiling import bytes_moved, copies, mosaic_kernels
from tests.deviceless.daily import each

pytestmark = pytest.mark.deviceless

ELEMENTS = cases.SHAPE[0] * cases.SHAPE[1]
KERNELS = {
    "lion8bit": ["lion_step"],
    "lamb8bit": ["lamb_moments", "lamb_apply"],
    "adamw8bit": ["adam_step"],
}
STEP = {"lion8bit": 8.03, "lamb8bit": 14.11, "adamw8bit": 10.06}
"""Bytes per bfloat16 parameter of the step alone, as in `test_kernels`."""
NORM = 2
"""The gradient, which is read once more."""
SMALL = 2**19
"""Bytes of a temporary that is no leaf: partial sums of norms, 20 for each of LAMB's tiles."""


def per_parameter(facts, leaves):
    """Bytes moved, but for the gradient that `lamb_apply` reads only where it has to skip."""
    rare = sum(name == "lamb_apply" for name in mosaic_kernels(facts)) * 2 * ELEMENTS
    return (bytes_moved(facts) - rare) / (leaves * ELEMENTS)


@each(["clipped/{name}/ours"], {"name": clipped.NAMES})
def test_a_clipped_step_is_a_norm_and_the_kernels(facts_for, name):
    facts = facts_for("h200")[f"clipped/{name}/ours"]["facts"]
    assert sorted(mosaic_kernels(facts)) == sorted(clipped.LEAVES * KERNELS[name])
    # A sum is made in two kernels, of which the second adds up a few thousand numbers.
    large = [x for x in facts["launches"] if x["kind"] != "mosaic" and x["reads"] >= ELEMENTS]
    assert [x["kind"] for x in large] == ["reduce"] * clipped.LEAVES
    # Partial sums, of norms and for LAMB's, on top.
    assert per_parameter(facts, clipped.LEAVES) == pytest.approx(STEP[name] + NORM, abs=0.02)
    assert facts["temp"] < SMALL and not copies(facts, at_least=SMALL)


def test_optaxs_writes_the_gradients_and_reads_them_again(facts_for):
    facts = facts_for("h200")["clipped/lion8bit/Optax's"]["facts"]
    assert per_parameter(facts, clipped.LEAVES) == pytest.approx(8.03 + NORM + 4, abs=0.02)
    assert facts["temp"] >= 2 * ELEMENTS  # a gradient at least, though they are donated


@each(["clipped/{name}/scaled"], {"name": clipped.NAMES})
def test_scaling_costs_nothing(facts_for, name):
    facts = facts_for("h200")[f"clipped/{name}/scaled"]["facts"]
    assert mosaic_kernels(facts) == KERNELS[name]
    assert per_parameter(facts, 1) == pytest.approx(STEP[name], abs=0.02)
    assert facts["temp"] < SMALL


@each(["clipped/{name}/scaled, by percentile too"], {"name": clipped.NAMES})
def test_scaling_and_two_clips_need_one_norm(facts_for, name):
    facts = facts_for("h200")[f"clipped/{name}/scaled, by percentile too"]["facts"]
    assert mosaic_kernels(facts) == KERNELS[name]
    assert per_parameter(facts, 1) == pytest.approx(STEP[name] + NORM, abs=0.02)
    assert facts["temp"] < SMALL


@each(["clipped/{name}/8"], {"name": clipped.MESHES})
def test_devices_add_up_the_norm_and_those_of_lamb(facts_for, name):
    """LAMB's depend on the clip: they cannot be added up together. Percentiles need no sum more."""
    facts = facts_for("h200")[f"clipped/{name}/8"]["facts"]
    assert facts["collectives"] == {"all-reduce": 2 if name == "lamb8bit" else 1}
    launched = [x["name"] for x in facts["launches"] if x["kind"] == "mosaic"]
    for kernel in KERNELS[name]:
        assert launched.count(kernel) == len(meshes.IN_KERNELS)
    # Every shard of a gradient is read once for its norm.
    reduced = sum(x["reads"] for x in facts["launches"] if x["kind"] == "reduce")
    gradients = 2 * sum(meshes.shard_sizes().values())
    assert gradients <= reduced < 1.05 * gradients


def test_a_stream_of_pages_waits_for_the_norm_alone(facts_for):
    """No scaled gradient is written before it: the difference to Optax's clip is that."""
    of = {how: facts_for("h200")[f"paged_lion8bit/training{how}"]["facts"] for how in paged.CLIPS}
    gradients = 2 * paged.LAYERS * 2048 * 4096

    def written(how):
        return sum(x["writes"] for x in of[how]["launches"] if x["kind"] == "fusion")

    assert written(", clipped") - written("") < SMALL
    assert written(", clipped by Optax") - written("") >= gradients
