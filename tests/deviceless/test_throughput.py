"""What the kernels cost against what the time of their bytes allows, on three GPUs."""

import re

import jax
import pytest

from tests.deviceless import report
from tests.deviceless.daily import each
from tests.deviceless.throughput import roundings, tables
from tests.deviceless.throughput.gpus import GPUS
from tests.deviceless.throughput.kernels import DTYPES, NAMES, case_name

pytestmark = pytest.mark.deviceless

CELLS = tables.all_kernels()
BY_GPU = each([case_name(*cell) for cell in CELLS], {"target": GPUS})
PAGE = report.PAGE.read_text(encoding="utf-8")
ON_PAGE = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="the page has what the newest JAX makes of the kernels"
)

# Bytes for each parameter: those of the gradient, the parameter, a code and the scale of a block,
# each as often as the kernel reads or writes it.
CODE = 1 + 4 / 256
BYTES = {
    "lion_step": lambda d: 3 * d + 2 * CODE,
    "lion_signs": lambda d: d + 2 * CODE + 1,
    "adam_step": lambda d: 3 * d + 4 * CODE,
    "adam_moments": lambda d: d + 4 * CODE,
    "lamb_moments": lambda d: 2 * d + 4 * CODE,
    "lamb_apply": lambda d: 2 * d + 2 * CODE,
    "quantize": lambda d: d + CODE,
    "dequantize": lambda d: d + CODE,
}
SIZES = {"bf16": 2, "f32": 4}

MOST = dict(
    lion_step=44, lion_signs=42, adam_step=86, adam_moments=67, lamb_moments=87, lamb_apply=26,
    quantize=23, dequantize=10,
)  # fmt: skip
"""Instructions for each parameter, on any of the GPUs and of either dtype: rounded up by 2 %."""

OVER = {
    ("a100", "adam_moments", "bf16"): 1.25,
    ("a100", "lamb_moments", "bf16"): 1.05,
    ("h200", "lion_signs", "bf16"): 1.1,
    ("h200", "adam_step", "bf16"): 1.3,
    ("h200", "adam_moments", "bf16"): 1.65,
    ("h200", "adam_moments", "f32"): 1.25,
    ("h200", "lamb_moments", "bf16"): 1.4,
    ("h200", "lamb_moments", "f32"): 1.1,
    ("h200", "quantize", "bf16"): 1.15,
    ("b200", "lion_step", "bf16"): 1.05,
    ("b200", "lion_signs", "bf16"): 1.35,
    ("b200", "lion_signs", "f32"): 1.15,
    ("b200", "adam_step", "bf16"): 1.5,
    ("b200", "adam_moments", "bf16"): 1.95,
    ("b200", "adam_moments", "f32"): 1.45,
    ("b200", "lamb_moments", "bf16"): 1.6,
    ("b200", "lamb_moments", "f32"): 1.25,
    ("b200", "quantize", "bf16"): 1.45,
}
"""Kernels that need more instructions than their budget, and how many times as many at most."""


@pytest.fixture
def modelled(facts_for):
    """`{(kernel, dtype): Modelled}` of a GPU."""

    def of(gpu):
        made = tables.modelled(gpu, CELLS, facts_for(gpu))
        return {cell[:2]: x for cell, x in zip(CELLS, made, strict=True)}

    return of


@BY_GPU
def test_kernels_spill_nothing_and_move_the_bytes_of_the_design(modelled, target):
    found = modelled(target)
    assert found.keys() == {(kernel, dtype) for kernel in NAMES for dtype in DTYPES}
    for (name, dtype), of in found.items():
        assert of.kernel.spilled == 0, name
        # LAMB's first pass writes three sums for every tile, which the second one may read.
        sums = 12 / (of.kernel.threads * of.kernel.per_thread) if name[:4] == "lamb" else 0
        assert of.kernel.bytes == pytest.approx(BYTES[name](SIZES[dtype]) + sums, abs=1e-4), name


@BY_GPU
def test_kernels_keep_to_their_instructions(modelled, target):
    counts = {key: of.kernel.instructions for key, of in modelled(target).items()}
    assert {key: count for key, count in counts.items() if count > MOST[key[0]]} == {}
    assert min(counts.values()) > 5  # else the shortest way is not that of a tile


@BY_GPU
def test_kernels_keep_to_their_budget_or_are_known_not_to(modelled, target):
    over = {(target, *key): of.over for key, of in modelled(target).items()}
    assert {key: x for key, x in over.items() if x > OVER.get(key, 1)} == {}
    # What is well within its budget has no place in the list.
    assert {key: x for key, x in over.items() if key in OVER and x < 0.97} == {}


@ON_PAGE
@BY_GPU
def test_the_page_says_what_is_compiled(modelled, target):
    """By 5 %: another version of the compilers makes a little other code."""
    rows = report.read(PAGE, target)[2:]
    found = modelled(target)
    assert len(rows) == len(found)
    for row, (key, of) in zip(rows, found.items(), strict=True):
        printed, now = cells(row), tables.compiled_row(key[1], of)
        assert printed[:2] == now[:2]
        assert numbers(printed[2 : len(now)]) == pytest.approx(numbers(now[2:]), rel=0.05), row


@ON_PAGE
@BY_GPU
def test_the_page_says_what_is_modelled(modelled, target):
    """Of one kernel, which the simulator has in some seconds."""
    (row,) = (x for x in report.read(PAGE, target) if x.startswith("| `quantize` | bf"))
    time = modelled(target)["quantize", "bf16"].simulated()
    assert float(cells(row)[-2]) == pytest.approx(time, rel=0.05)


@pytest.mark.long
@ON_PAGE
def test_the_page_says_what_roundings_of_parameters_take(facts_for):
    """By 5 %, as above. Of one GPU."""
    found = roundings.modelled("h200", facts_for("h200"))
    rows = report.read(PAGE, "roundings")
    assert rows[:2] == roundings.HEADER.splitlines()
    at = cells(rows[0]).index("h200")
    for row, (key, of) in zip(rows[2:], found.items(), strict=True):
        printed = cells(row)
        assert printed[:2] == [f"`{key[0]}`", key[1]]
        now = numbers(roundings.compiled_cells(of))
        assert numbers([printed[2], printed[at]]) == pytest.approx(now, rel=0.05), row


def test_the_page_has_every_model():
    rows = report.read(PAGE, "models")[2:]
    assert len(rows) == 3 * 3 * 4  # models, optimizers, ways to ask for a step


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def numbers(row):
    return [float(x) for cell in row for x in re.findall(r"\d+(?:\.\d+)?", cell)]
