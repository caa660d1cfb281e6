"""Whether the judges would notice if a kernel were another one."""

import collections

import pytest

from tests.deviceless import sharing
from tests.emulated.mutants import RULES

pytestmark = pytest.mark.deviceless


@pytest.fixture(scope="session")
def outcomes(request, tmp_path_factory):
    """A function: `{mutant: how}` of a kernel, see `mutants`."""
    sharing.need_compilers()
    folder = sharing.folder(request.config, tmp_path_factory)
    command = ("-m", "tests.emulated.mutants", "h200", "--out")

    def of(kernel):
        path = folder / f"emulated-mutants-{kernel}"
        return sharing.results(command, [[kernel]], path)[kernel]

    return of


def each(kernels):
    """Every day one kernel; the judges are the same for all."""
    marks = {name: () if name == "lion_step" else pytest.mark.long for name in kernels}
    return pytest.mark.parametrize("kernel", [pytest.param(x, marks=marks[x]) for x in kernels])


@each(RULES)
def test_the_judges_notice_a_broken_instruction(outcomes, kernel):
    """Three of four. What the others do is in docs/kernels.md."""
    how = collections.Counter(outcomes(kernel).values())
    assert how["judge"] + how["fault"] >= 0.75 * how.total()
    # Of those that change anything.
    assert how["within bounds"] <= 0.05 * how.total()


# `lamb_apply` reads gradients to find what it has to skip, and most have neighbours that are alike.
@each([name for name in RULES if name != "lamb_apply"])
def test_no_access_to_another_place_lives(outcomes, kernel):
    moved = {name: how for name, how in outcomes(kernel).items() if name.startswith("16 bytes on")}
    assert len(moved) >= 2
    assert set(moved.values()) <= {"judge", "fault"}
