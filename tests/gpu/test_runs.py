"""Runs of the suite: what several calls make together, and what becomes of processes that crash."""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import pytest

from tests.gpu import suite as running
from tests.gpu.parts import PARTS
from tests.gpu.records import Records, Skipped, append, close, read
from tests.gpu.suite import Suite


@pytest.fixture
def suite(tmp_path):
    """Makes a `Suite` of one part, as a call of the command does."""
    made = []

    def make(part, **changes):
        args = dict(out=tmp_path, only=None, part=[part], parts=[PARTS[part]], no_peers=False)
        args |= dict(interpret=False, minutes=20, start=time.monotonic(), jobs=1, quick=True)
        args |= dict(leaves=2, shape=[16, 512], again=False)
        environment = {"device": None, "versions": {"jax": "0"}, "sources": "same"}
        made.append(Suite(argparse.Namespace(**args | changes), environment))
        return made[-1]

    yield make
    for each in made:
        each._folder.cleanup()


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Lets processes do what a text says, with `records` and `part`, in place of the parts."""
    started, popen = [], subprocess.Popen

    def use(text):
        script = tmp_path / "script.py"
        script.write_text(
            "import os, pathlib, sys\n"
            "from tests.gpu.records import Records\n"
            "path, part = pathlib.Path(sys.argv[3]), sys.argv[-1]\n"
            "records = Records(path, part, float('inf'))\n" + text,
            encoding="utf-8",
        )

        def start(command, **options):
            started.append(command)
            options["env"] |= {"PYTHONPATH": str(running.ROOT)}
            return popen([sys.executable, str(script), *command[2:]], **options)

        monkeypatch.setattr(running.subprocess, "Popen", start)
        return started

    return use


def results(folder: pathlib.Path):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def statuses(found):
    return {r["name"]: r["status"] for r in found}


def test_one_failure_does_not_lose_the_others(tmp_path):
    def fails():
        raise AssertionError("two is not one")

    def crashes():
        raise RuntimeError("illegal address")

    def cannot():
        raise Skipped("no memory")

    records = Records(tmp_path / "records", "part", float("inf"))
    for function in (fails, crashes, cannot, dict):
        records.do("check", function.__name__, function)
    found = read(tmp_path / "records")
    assert [r["status"] for r in found] == ["failed", "error", "skipped", "passed"]
    assert "two is not one" in found[0]["error"] and "in fails" in found[0]["trace"]


def test_nothing_starts_after_the_deadline(tmp_path):
    records = Records(tmp_path / "records", "part", 0.0)
    records.do("check", "late", pytest.fail)
    (found,) = read(tmp_path / "records")
    assert found["reason"] == "out of time"


THREE = """
for name in "abc":
    records.do("check", name, lambda: {"seen_by": part} if name != "b" else os._exit(7))
"""


def test_after_a_crash_another_process_does_the_rest(tmp_path, suite, worker, capsys):
    started = worker(THREE)
    made = suite("program")
    made.run_checks(1.0)
    assert made.finish() == 1
    assert len(started) == 2
    found = results(tmp_path)["checks"]
    assert statuses(found) == {"a": "passed", "b": "error", "c": "passed"}
    (crash,) = [r for r in found if r["name"] == "b"]
    assert "exit status 7" in crash["error"]
    out = capsys.readouterr().out
    assert "1 failed" in out and "Nothing was left out." in out


def test_a_process_that_crashes_at_its_start_is_not_started_again(tmp_path, suite, worker):
    started = worker("os._exit(3)")
    made = suite("program")
    made.run_checks(1.0)
    assert made.finish() == 1 and len(started) == 1
    assert not results(tmp_path)["checks"]


def test_an_error_of_the_device_ends_its_process(tmp_path):
    def fails():
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access")

    records = Records(tmp_path / "records", "part", float("inf"))
    with pytest.raises(SystemExit):
        records.do("check", "fails", fails)
    assert statuses(read(tmp_path / "records")) == {"fails": "error"}


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path, suite, worker, capsys):
    late = """
for name in "abc":
    records._deadline = float("inf") if name == "a" or LATER else 0
    records.do("check", name, lambda: {"call": LATER})
"""
    started = worker(late.replace("LATER", "0"))
    first = suite("program")
    first.run_checks(1.0)
    assert first.finish() == 0
    assert "program: 2 of 3" in capsys.readouterr().out
    worker(late.replace("LATER", "1"))
    second = suite("program")
    second.run_checks(1.0)
    assert second.finish() == 0
    assert "Nothing was left out." in capsys.readouterr().out
    found = results(tmp_path)["checks"]
    assert {r["name"]: r["call"] for r in found} == {"a": 0, "b": 1, "c": 1}
    third = suite("program")
    third.run_checks(1.0)
    assert len(started) == 2  # the third call found nothing to do
    again = suite("program", again=True)
    again.run_checks(1.0)
    again.write()
    assert {r["call"] for r in results(tmp_path)["checks"]} == {1}


def test_other_options_are_another_run(tmp_path, suite):
    one = suite("program")
    one.write()
    assert suite("program")._earlier
    assert not suite("program", quick=False)._earlier


def test_what_had_begun_when_time_was_up_is_left_for_the_next_call(tmp_path):
    path = tmp_path / "records"
    common = {"kind": "check", "part": "part", "status": "started"}
    append(path, common | {"name": "short", "at": time.time()})
    append(path, common | {"name": "hangs", "at": time.time() - 1000})
    close(path, None)
    assert statuses(read(path)) == {"short": "skipped", "hangs": "error"}
    Records(path, "part", float("inf")).do("check", "short", dict)
    assert statuses(read(path))["short"] == "passed"


def test_parts_of_several_calls_fill_the_same_file(tmp_path, suite):
    for i, part in enumerate(["paged-link", "paged", "paged-link"]):
        made = suite(part)
        path = tmp_path / f"records{i}"
        Records(path, part, float("inf")).do(PARTS[part].kind, f"call {i}", dict, gb_per_s=1.0)
        made._files[part] = path
        made.write()
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert [r["name"] for r in result["checks"] + result["timings"]] == ["call 1", "call 2"]


def test_a_part_that_watches_the_peak_takes_its_memory_at_once(suite, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    made = suite("paged-link")
    shares = {"paged-link": "0.9", "peak-lion8bit-pieces": "0.05", "program": None}
    for name, share in shares.items():
        environment = made._environment_for([name])
        assert environment.get("XLA_CLIENT_MEM_FRACTION") == share
        assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == ("true" if share else "false")
        assert ("XLA_PYTHON_CLIENT_MEM_FRACTION" in environment) != bool(share)


def test_a_part_without_time_does_not_start_and_does_not_fail(capsys, suite):
    made = suite("paged-link", minutes=0.2)
    made.run_timings()
    assert made.finish() == 0
    assert "paged-link" in capsys.readouterr().out.splitlines()[-1]
