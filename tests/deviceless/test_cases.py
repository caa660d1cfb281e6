"""What holds for every case and every kernel, and for the steps of today's optimizers."""

import fnmatch

import pytest

from tests.deviceless import cases, worker
from tests.deviceless.cases import MODES
from tests.deviceless.compiling import bytes_moved, scalar_bytes
from tests.deviceless.daily import DAILY, each
from tests.deviceless.targets import TARGETS

pytestmark = pytest.mark.deviceless

MEANT_TO_FAIL = {"harness/fails", "harness/ambiguous"}
ELEMENTS = 4096 * 4096
# Bytes of parameters and state of one element: scales are float32, one for 256 codes.
STATE = {"lion8bit": 1 + 1 / 64, "lamb8bit": 2 + 2 / 64, "lion32bit": 4, "lamb32bit": 8}
PARAMETER = {"bf16": 2, "f32": 4}
_OF_ALL = [pytest.param(x, id=f"{x}, long", marks=pytest.mark.long) for x in TARGETS]
BY_TARGET = pytest.mark.parametrize("target", [*TARGETS, *_OF_ALL])
"""Of the cases of every day, and of all."""


def test_every_daily_name_is_that_of_a_case():
    worker.register()
    for target, patterns in DAILY.items():
        assert [x for x in patterns if not fnmatch.filter(cases.names(target), x)] == []


@BY_TARGET
def test_every_case_compiles(facts_for, target):
    errors = facts_for(target).errors()
    for name in MEANT_TO_FAIL & errors.keys():
        del errors[name]
    assert not errors, "\n".join(f"{name}:\n{error}" for name, error in errors.items())


@BY_TARGET
def test_no_kernel_spills(facts_for, target):
    spilled = {
        (case, kernel["key"]): kernel["sass"]["spilled_bytes"]
        for case, kernel in facts_for(target).kernels()
    }
    assert spilled
    assert not any(spilled.values()), spilled


@each(
    ["{name}/{dtype}/{mode}"], {"name": STATE, "dtype": PARAMETER, "mode": [x for x, *_ in MODES]}
)
def test_a_donated_step_writes_parameters_and_state_in_place(facts_for, name, dtype, mode):
    facts = facts_for("h200")[f"{name}/{dtype}/{mode}"]["facts"]
    arrays = ELEMENTS * (PARAMETER[dtype] + STATE[name])
    assert facts["alias"] == arrays + scalar_bytes(name)


@pytest.mark.parametrize(
    ("case", "least"),
    [
        # The gradient, and everything else read and written once.
        ("lion32bit/bf16/apply_fused, XLA", 2 + 2 * 2 + 2 * 4),
        ("lion32bit/bf16/update, XLA", 2 + 2 * 2 + 2 * 4),
        ("lion32bit/f32/update, XLA", 4 + 2 * 4 + 2 * 4),
        ("optax.lion/f32/update", 4 + 2 * 4 + 2 * 4),
        # A pass for the new scales and the parameters (gradient, parameter twice, codes), and one
        # for the codes (gradient, codes twice).
        ("lion8bit/bf16/apply_fused, XLA", (2 + 2 * 2 + 1) + (2 + 2 * 1)),
        # Another pass applies the direction, an int8 that is written and read.
        ("lion8bit/bf16/update, XLA", (2 + 1 + 1) + (2 + 2 * 1) + (1 + 2 * 2)),
    ],
)
def test_a_step_in_plain_xla_moves_the_bytes_that_its_passes_need(facts_for, case, least):
    moved = bytes_moved(facts_for("h200")[case]["facts"]) / ELEMENTS
    # On top, for every block: its scale, moved at most ten times by a step of Lion, and two numbers
    # made of it, written and read; and some scalars.
    assert least <= moved <= least + (10 + 2 * 2) / 64 + 1e-4
