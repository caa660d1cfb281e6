"""Whether faults and judges would notice if Triton kernels were written in another way."""

import pytest

from pallas_kernels.triton import rules
from tests.deviceless import sharing
from tests.emulated import writer_mutants
from tests.emulated.conftest import need_compilers
from tests.emulated.writer_mutants import ALIVE, MUTANTS, UNMET

PARTS = 4


def test_every_rule_has_a_mutant():
    assert {primitive for primitive, _ in writer_mutants.RULES.values()} == set(rules.RULES)


@pytest.fixture(scope="session")
def outcomes(request, tmp_path_factory):
    need_compilers(writer_mutants.TARGET)
    folder = sharing.folder(request.config, tmp_path_factory)
    parts = [list(MUTANTS)[i::PARTS] for i in range(PARTS)]
    command = "-m", "tests.emulated.writer_mutants", "--out"
    return sharing.results(command, parts, folder / "emulated-writer-mutants")


@pytest.mark.long
@pytest.mark.deviceless
@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_written_in_another_way_is_noticed(outcomes, name):
    """Or there is a reason why not."""
    expected = {"lives"} if name in ALIVE else {"not met"} if name in UNMET else None
    assert outcomes[name]["how"] in (expected or {"judge", "fault", "refused"})
