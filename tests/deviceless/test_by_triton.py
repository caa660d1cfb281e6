"""What steps by the kernels of Triton are promised to be, as the other tests say of Mosaic's."""

import itertools
import math
import re

import pytest

from tests.deviceless import by_triton, cases, clipped, kernels, meshes, report, sharing
from tests.deviceless.by_triton import name_of
from tests.deviceless.compiling import bytes_moved, copies, scalar_bytes, triton_kernels
from tests.deviceless.daily import each
from tests.deviceless.targets import TARGETS
from tests.deviceless.test_clipped import KERNELS, NORM, STEP
from tests.deviceless.test_meshes import shard_bytes
from tests.deviceless.test_paged import BOUND, elements, params_bytes, state_bytes
from tests.deviceless.test_throughput import ON_PAGE
from tests.deviceless.throughput import tables
from tests.deviceless.throughput.kernels import DTYPES as COUNTED
from tests.deviceless.throughput.kernels import NAMES as MODELLED
from tests.deviceless.transfers import STARTS, moved
from tests.triton import compiling, table

pytestmark = pytest.mark.deviceless

SLOTS = {"lion8bit": 1, "lamb8bit": 2, "adamw8bit": 2}
UPDATES = {"lion8bit": ["lion_signs"], "lamb8bit": ["lamb_moments"], "adamw8bit": ["adam_moments"]}
SMALL = 2**19
"""Bytes of a temporary that is no leaf: partial sums of norms, 20 for each of LAMB's tiles."""

by_mesh = each(["triton/{name}/8 {kind}/{form}"], {"name, kind, form": by_triton.ON_MESHES})


@pytest.fixture
def facts(facts_for):
    """The facts of a case of Triton's, by the words of its name."""
    return lambda *words, target="h200": facts_for(target)[name_of(*words)]["facts"]


def expected(name, form):
    return KERNELS[name] if form == "apply_fused" else UPDATES[name]


def arrays(name, shape):
    """Bytes of parameters and of state."""
    size = math.prod(by_triton.SHAPES[shape])
    return 2 * size + SLOTS[name] * (size + 4 * -(-size // 256)) + scalar_bytes(name)


@each(["triton/{name}/{shape}/{form}"], {"name": by_triton.NAMES, "shape, form": by_triton.STEPS})
def test_a_leaf_of_any_size_is_one_kernel_and_with_a_ratio_at_most_two(facts, name, shape, form):
    found = facts(name, shape, form)
    assert triton_kernels(found) == expected(name, form)
    assert found["alias"] == arrays(name, shape)
    assert not copies(found, at_least=SMALL)
    # Updates of Lion are a byte of sign each, until XLA adds them.
    signs = math.prod(by_triton.SHAPES[shape]) if UPDATES[name] == triton_kernels(found) else 0
    assert found["temp"] <= SMALL + signs * ("lion" in name)


@each(["triton/{name}/ragged/apply_fused"], {"name": ("lion8bit", "lamb8bit"), "target": TARGETS})
def test_every_gpu_has_kernels_of_its_own(facts_for, name, target):
    result = facts_for(target)[name_of(name, "ragged", "apply_fused")]
    assert triton_kernels(result["facts"]) == KERNELS[name]
    assert result["facts"]["alias"] == arrays(name, "ragged")
    # `sass.assembled` refuses code for another GPU.
    assert all(x["sass"]["spilled_bytes"] == 0 for x in result["kernels"].values())


@each(["triton/{name}/8 leaves"], {"name": by_triton.NAMES})
def test_a_step_moves_the_bytes_of_its_arrays(facts, name):
    found = facts(name, "8 leaves")
    assert sorted(triton_kernels(found)) == sorted(8 * KERNELS[name])
    assert not copies(found, at_least=SMALL)
    size = 8 * math.prod(kernels.SHAPE)
    # But for the gradient that `lamb_apply` reads where it has to skip; partial sums on top.
    rare = 2 * ("lamb" in name)
    assert bytes_moved(found) / size - rare == pytest.approx(STEP[name], abs=0.02)


@each(["triton/{name}/counted"], {"name": by_triton.COUNTED})
def test_counting_what_is_skipped_takes_no_launch_more_of_a_leaf(facts, name):
    found = facts(name, "counted")
    assert triton_kernels(found) == KERNELS[name]
    assert found["temp"] <= SMALL and not copies(found, at_least=SMALL)


@each(["triton/{name}/clipped"], {"name": by_triton.CLIPPED})
def test_a_clipped_step_is_a_norm_and_the_kernels(facts, name):
    found = facts(name, "clipped")
    assert sorted(triton_kernels(found)) == sorted(clipped.LEAVES * KERNELS[name])
    size = clipped.LEAVES * math.prod(cases.SHAPE)
    rare = 2 * ("lamb" in name)
    assert bytes_moved(found) / size - rare == pytest.approx(STEP[name] + NORM, abs=0.02)
    assert found["temp"] <= SMALL and not copies(found, at_least=SMALL)


@pytest.mark.long
def test_a_stack_is_stepped_as_one_leaf(facts):
    found = facts("lamb8bit", "stacked")
    assert triton_kernels(found) == KERNELS["lamb8bit"]
    assert not copies(found, at_least=SMALL)


def test_quantization_reads_and_writes_once(facts):
    for name, reads, writes in (("quantize", 2, 1), ("dequantize", 1, 2)):
        found = facts(name)
        assert triton_kernels(found) == [name]
        each = bytes_moved(found) / math.prod(kernels.SHAPE)
        assert each == pytest.approx(reads + writes + 4 / 256, abs=0.001)


@each(["triton/{name}/{leaves}/{form}"], {"name, leaves, form": by_triton.PAGED})
def test_pages_are_stepped_by_kernels_and_written_in_place(facts, name, leaves, form):
    found = facts(name, leaves, form)
    state = state_bytes(name, leaves)
    assert set(triton_kernels(found)) == set(expected(name.removeprefix("paged_"), form))
    assert found["host"] == {"arguments": state, "outputs": state, "alias": state, "temp": 0}
    assert found["alias"] == params_bytes(name, leaves) + scalar_bytes(name)
    assert moved(found["transfers"])["out"] == state
    # The program makes its own gradients, and an update is written to an array of its own.
    others = params_bytes(name, leaves) * (1 if form == "apply_fused" else 2)
    assert found["temp"] - others <= BOUND
    leaf = 2 * min(elements(name, leaves))
    assert [x for x in copies(found, leaf) if not x["name"].startswith(STARTS)] == []


@by_mesh
def test_devices_add_up_norms_and_nothing_else(facts, name, kind, form):
    found = dict(facts(name, f"8 {kind}", form)["collectives"])
    count = found.pop("all-reduce", 0)
    assert found == {}
    assert count == 0 if "lion" in name else 1 <= count <= (3 if "paged" in name else 1)


@by_mesh
def test_kernels_work_on_shards_in_place(facts, name, kind, form):
    found = facts(name, f"8 {kind}", form)
    launched = triton_kernels(found)
    one = expected(name.removeprefix("paged_"), form)
    assert set(launched) == set(one)
    if "paged" not in name:
        assert sorted(launched) == sorted(len(meshes.IN_KERNELS) * one)
    params, state = shard_bytes(name)
    assert found["alias"] + found["host"]["alias"] == params + state
    assert found["host"]["temp"] == 0 and not found["host_compute"]
    # But scales of the smallest leaf, what a stream moves, and partial sums of LAMB's norms.
    rest = [x for x in copies(found, 256) if not x["name"].startswith(STARTS)]
    assert all("lamb" in name and r.endswith(",2]") for x in rest for r in x["results"])


@pytest.mark.long
def test_norms_of_layers_share_the_all_reduce(facts):
    found = facts("lamb8bit", "8 explicit", "stacked")
    assert found["collectives"] == {"all-reduce": 1}
    assert triton_kernels(found).count("lamb_apply") == len(meshes.IN_KERNELS)


@pytest.mark.long
def test_kernels_run_in_a_shard_map_of_the_user(facts):
    found = facts("lion8bit", "shard_map")
    assert triton_kernels(found) == KERNELS["lion8bit"]
    assert found["collectives"] == {} and not copies(found, at_least=SMALL)
    assert found["alias"] == (arrays("lion8bit", "whole") - 8) / meshes.DEVICES + 8


BESIDE = {"lion_step": 1.0, "lion_signs": 1.0}
"""Instructions as a multiple of Mosaic's, at most; of the other kernels, `OTHERS`."""
OTHERS = 1.15
BESIDE_DAILY = ("lion_step", "bf16"), ("lamb_moments", "bf16")


@pytest.fixture(scope="module")
def mosaic(facts_for):
    """`{(kernel, dtype): throughput.model.Kernel}` of Mosaic's kernels on an H200."""
    cells = tables.all_kernels()
    found = tables.modelled("h200", cells, facts_for("h200"))
    return {cell[:2]: x.kernel for cell, x in zip(cells, found, strict=True)}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(*x, marks=() if x in BESIDE_DAILY else pytest.mark.long)
        for x in itertools.product(MODELLED, COUNTED)
    ],
)
def test_kernels_need_hardly_more_instructions_than_mosaics(mosaic, name, dtype):
    count = compiling.instructions(table.kernel(name, dtype))
    assert count > 5  # else the shortest way is not that of a tile
    assert count <= BESIDE.get(name, OTHERS) * mosaic[name, dtype].instructions


@ON_PAGE
def test_the_page_says_what_is_compiled():
    """By 5 %: another version of the compilers makes a little other code. Of one kernel."""
    sharing.need_compilers()
    rows = report.read(report.PAGE.read_text(encoding="utf-8"), "triton")
    assert rows[:2] == table.HEADER.splitlines()
    assert len(rows) - 2 == len(MODELLED) * len(COUNTED)
    cells = table.row("lion_step", "bf16")
    printed, now = (numbers(x) for x in (rows[2], f"| {' | '.join(cells)} |"))
    *printed, _, _ = printed  # Mosaic's
    assert printed == pytest.approx(now, rel=0.05)


def numbers(row):
    return [float(x) for x in re.findall(r"\d+(?:\.\d+)?", row)]
