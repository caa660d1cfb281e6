import sys

import pytest

from benchmarks.steps import __main__ as command
from benchmarks.steps import suite, torch_peers
from optax_lamblion.demo import contest, workloads


def test_a_process_that_has_ended_is_an_error():
    # This Python has no PyTorch, so the worker ends at its first question.
    with pytest.raises(RuntimeError, match="ended"):
        torch_peers.Process(sys.executable)


def test_the_suite_knows_its_lists():
    names = {row.workload for row in suite.SUITE}
    assert names == set(workloads.WORKLOADS)
    assert all(row.shapes() for row in (*suite.SUITE, *suite.QUICK))


class Peers:
    """A process of peers of which one cannot step."""

    def of_family(self, family, arrays, absent):
        absent["unable"] = "it raises"
        return [contest.Entry("able", torch_peers.WAY, self)]

    def warm_up(self):
        return 1.0

    def sample(self):
        return 1.0


def test_a_contest_says_who_took_part_and_who_could_not(monkeypatch):
    monkeypatch.setattr(command, "flash_is_there", lambda: False)
    row = suite.Row("leaf-64k", everything=True)
    said = []
    (found,) = command.contests([row], ("lion",), Peers(), 2, said.append)
    assert [x["optimizer"] for x in found["entries"]] == [
        *("optax.lion", "lion32bit", "lion32bit", "lion8bit", "lion8bit", "copy"),
        *("optax.lion", "lion8bit", "able"),
    ]
    assert found["absent"] == {"unable": "it raises"}
    assert [len(x["times_ms"]) for x in found["entries"]] == [2] * 9
    assert len(said) == 9


def test_no_record_is_kept_without_the_peers(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "flash_is_there", lambda: True)
    monkeypatch.setattr(torch_peers, "PYTHON", tmp_path / "python")
    assert command.main([]) == 2
    assert "./dev peers" in capsys.readouterr().err
