"""The suite for GPUs does its work where there is none, as far as that is possible."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import rules, xla
from tests.gpu import check_step, comparing, report
from tests.gpu.environment import ROOT
from tests.gpu.records import Records, Skipped, read


def run_suite(*arguments, **environment):
    command = [sys.executable, "-W", "error", "-m", "tests.gpu", *arguments]
    made = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, cwd=ROOT, env=made, capture_output=True, text=True)


def test_the_whole_suite_runs_in_the_interpreter(tmp_path):
    done = run_suite("--interpret", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    parts = {r["part"] for r in result["checks"] if r["status"] == "passed"}
    assert {"step-lion", "step-lamb", "oracle-lion", "quantize", "program", "memory"} <= parts
    measured = [r for r in result["timings"] if r["status"] == "measured"]
    assert len(measured) > 30
    assert all(r["median_ms"] > 0 and r["bytes"] > 0 and r["of_copy"] > 0 for r in measured)
    assert result["environment"]["versions"]["jax"] == jax.__version__
    assert "Checks" in done.stdout and "Targets" in done.stdout


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    done = run_suite("--out", tmp_path)
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr
    assert not list(tmp_path.iterdir())


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


STEPS = [
    check_step.Case(rules.LION, "params", p="float32", g="float32"),
    check_step.Case(rules.LAMB, "updates"),
    check_step.Case(rules.LAMB_AMSGRAD, "params", p="float32", g="float32"),
]


@pytest.mark.parametrize("case", STEPS, ids=lambda case: f"{case.rule.name}-{case.emit}")
def test_the_judge_of_a_step_notices_small_mistakes(case):
    given = comparing.inputs(case)
    step = jax.jit(functools.partial(xla.step, comparing.spec(case)))
    seen = step(*given)
    comparing.judge(case, given, seen, seen)
    out, slots, absmaxes = seen
    last = slots[-1].at[2, 7].set(slots[-1][2, 7] ^ 3)
    mistakes = [
        (out, (slots[0] ^ 1, *slots[1:]), absmaxes),
        (out, (*slots[:-1], last), absmaxes),
        (out, slots, (absmaxes[0] * 1.00001, *absmaxes[1:])),
        (out.at[3, 3].set(out[3, 3] * 1.02), slots, absmaxes),
        (out * 0, slots, absmaxes),
    ]
    for field in ("one_minus_b2", "step_size", "weight_decay"):
        s = given[4]._replace(**{field: 1.05 * getattr(given[4], field)})
        mistakes.append(step(*given[:4], s, given[5]))
    if any(slot.second_moment for slot in case.rule.slots):
        mistakes.append(step(*given[:5], jnp.uint32(1)))  # another key
    for mistake in mistakes:
        with pytest.raises(AssertionError):
            comparing.judge(case, given, mistake, seen)


def test_every_case_of_a_step_has_a_name_of_its_own():
    for rule in (rules.LION, rules.LAMB):
        names = [case.name for case in check_step.cases(rule)]
        assert len(names) == len(set(names))


def test_a_target_is_met_missed_or_of_another_card():
    name = "large: lion8bit bf16 apply_fused"
    timing = dict(kind="timing", status="measured", name=name, of_copy=0.9, ms_per_1e9_elements=2.3)
    verdicts = {
        device: {t["what"]: t["met"] for t in report.targets([timing], device) if t["seen"]}
        for device in ("NVIDIA H200", "NVIDIA H100 80GB HBM3")
    }
    relative, absolute = "share of copy bandwidth", "ms per 1e9 parameters"
    assert verdicts["NVIDIA H200"] == {relative: True, absolute: False}
    assert verdicts["NVIDIA H100 80GB HBM3"] == {relative: True, absolute: None}
