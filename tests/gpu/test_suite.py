"""The suite for GPUs does its work where there is none, as far as that is possible."""

import collections
import functools
import json
import os
import subprocess
import sys
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.arithmetic import rules
from pallas_kernels.arithmetic.shards import Place
from pallas_kernels.triton import installed
from pallas_kernels.xla import step as xla
from tests.gpu import (
    check_paged,
    check_paged_memory,
    check_step,
    comparing,
    peak,
    report,
    report_paged,
    time_training,
    timing,
    torch_peers,
)
from tests.gpu.environment import ROOT
from tests.gpu.parts import PARTS
from tests.gpu.records import Records, Run, Skipped, read
from tests.steps import on_arrays, with_residual


def run_suite(*arguments, **environment):
    command = [sys.executable, "-W", "error", "-m", "tests.gpu", *arguments]
    made = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, cwd=ROOT, env=made, capture_output=True, text=True)


@pytest.mark.long
def test_the_whole_suite_runs_in_the_interpreter(tmp_path):
    # Time enough for all of it on a machine that does other things, too.
    done = run_suite("--interpret", "--quick", "--minutes", "20", "--out", tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    parts = {r["part"] for r in result["checks"] if r["status"] == "passed"}
    checks = {name for name, part in PARTS.items() if part.kind == "check"}
    by_triton = {name for name in checks if name.startswith("triton-")}  # not in an interpreter
    assert parts == checks - by_triton
    assert {r["part"] for r in result["checks"] if r["status"] == "skipped"} == by_triton
    measured = [r for r in result["timings"] if r["status"] == "measured"]
    ours = [r for r in measured if "paging" not in r]
    assert len(ours) > 30
    assert all(r["median_ms"] > 0 and r["bytes"] > 0 and r["of_copy"] > 0 for r in ours)
    paging = collections.Counter(r["paging"] for r in measured if "paging" in r)
    assert paging == {"link": 6, "resident": 4, "stream": 8, "training": 6}
    assert all(r["overlap"] > 0 for r in measured if r.get("paging") == "stream")
    assert all("slowdown" in r for r in measured if r.get("paging") == "training")
    assert not [r for r in result["timings"] + result["checks"] if "error" in r]
    assert result["environment"]["versions"]["jax"] == jax.__version__
    assert "Checks" in done.stdout and "Targets" in done.stdout


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    done = run_suite("--out", tmp_path)
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr
    assert not list(tmp_path.iterdir())


POISON = check_step.POISON
STEPS = [
    check_step.Case(rules.LION, "params", p="float32", g="float32"),
    check_step.Case(rules.LAMB, "updates"),
    check_step.Case(rules.LAMB_AMSGRAD, "params", p="float32", g="float32"),
    check_step.Case(rules.ADAM, "params", p="float32", g="float32"),
    check_step.Case(rules.ADAM, "updates"),
]


def step_of(case):
    """A case, what it is given, XLA's step as a function, and what that makes of it."""
    given = comparing.inputs(case)
    step = jax.jit(functools.partial(on_arrays(xla.step), comparing.spec(case)))
    seen = step(*given)
    comparing.judge(case, given, seen, seen)
    return given, step, seen


def by_name(case):
    return f"{case.rule.name}-{case.emit}"


@pytest.mark.parametrize("case", STEPS, ids=by_name)
def test_the_judge_of_a_step_notices_small_mistakes(case):
    given, step, seen = step_of(case)
    out, slots, absmaxes, _ = seen
    last = slots[-1].at[2, 7].set(slots[-1][2, 7] ^ 3)
    mistakes = [
        seen._replace(slots=(slots[0] ^ 1, *slots[1:])),
        seen._replace(slots=(*slots[:-1], last)),
        seen._replace(absmaxes=(absmaxes[0] * 1.00001, *absmaxes[1:])),
        seen._replace(out=out.at[3, 3].set(out[3, 3] * 1.02)),
        seen._replace(out=out * 0),
        seen._replace(out=out.at[3, 3].set(jnp.nan)),
        seen._replace(skipped=jnp.float32(0)),
    ]
    *arrays, s, dither = given
    others = [s._replace(own=s.own._replace(one_minus_b2=1.05 * s.own.one_minus_b2))]
    for field in ("step_size", "weight_decay"):
        others.append(s._replace(**{field: 1.05 * getattr(s, field)}))
    mistakes += [step(*arrays, other, dither) for other in others]
    for mistake in mistakes:
        with pytest.raises(AssertionError):
            comparing.judge(case, given, mistake, seen)


@pytest.mark.parametrize("case", STEPS, ids=by_name)
def test_the_judge_of_a_step_predicts_the_dither_of_every_block(case):
    """Another step, leaf or block, or none of the scrambling, rounds elsewhere."""
    given, step, seen = step_of(case)
    *arrays, dither = given
    others = [dither._replace(step=dither.step + 1), dither._replace(leaf=~dither.leaf)]
    others.append(dither._replace(digits=()))
    # Blocks are counted as those of a shard, which begins in the second row of its tensor.
    rows, columns = case.shape
    place = Place((1 + rows, columns), case.shape, (jnp.uint32(1), None))
    others.append(dither._replace(place=place))
    mistakes = [step(*arrays, other) for other in others]
    codes = seen.slots[0]  # one row that was rounded as the next one would be
    mistakes.append(
        seen._replace(slots=(codes.at[4].set(mistakes[-1].slots[0][4]), *seen.slots[1:]))
    )
    for mistake in mistakes:
        for pair in ((mistake, seen), (seen, mistake)):
            with pytest.raises(AssertionError, match="codes of (kernel|XLA) wrong"):
                comparing.judge(case, given, *pair)


@pytest.mark.parametrize("rule", [rules.LION, rules.LAMB, rules.ADAM], ids=lambda rule: rule.name)
def test_the_judge_of_a_step_knows_what_is_lost_and_what_is_skipped(rule):
    case = check_step.Case(
        rule, "params", p="float32", poison=POISON, lost=(1, 3), count_skipped=True
    )
    given, _, seen = step_of(case)
    # All of them, but for -1e25, which only a rule that squares it cannot take.
    assert float(seen.skipped) == len(POISON) - (rule.grad_limit > 1e25)
    quiet = jnp.where(jnp.isnan(seen.out), given[1].astype(seen.out.dtype), seen.out)
    mistakes = [
        seen._replace(out=quiet),
        seen._replace(absmaxes=(jnp.nan_to_num(seen.absmaxes[0]), *seen.absmaxes[1:])),
        seen._replace(skipped=seen.skipped + 1),
        seen._replace(skipped=None),
    ]
    for mistake in mistakes:
        with pytest.raises(AssertionError):
            comparing.judge(case, given, mistake, seen)


@pytest.mark.parametrize("case", [STEPS[0], STEPS[1]], ids=by_name)
def test_of_a_large_leaf_every_sixteenth_block_is_predicted(case, monkeypatch):
    monkeypatch.setattr(comparing, "LARGE", 4096)
    given, _, seen = step_of(case)
    codes = seen.slots[0]
    at = codes.at[8, 5].set(codes[8, 5] ^ 3)  # block 16
    wrong = seen._replace(slots=(at, *seen.slots[1:]))
    with pytest.raises(AssertionError, match="codes of kernel wrong"):
        comparing.judge(case, given, wrong, wrong)


ROUNDED = [
    check_step.Case(
        rules.LION, "params", decay=None, change=check_step.SMALL_STEP, rounding="stochastic"
    ),
    check_step.Case(
        rules.ADAM, "params", change=check_step.SMALL_STEP, rounding="compensated", poison=POISON
    ),
    check_step.Case(
        rules.LION, "params", p="float16", change=check_step.SMALL_STEP, rounding="compensated"
    ),
]


@pytest.mark.parametrize("case", ROUNDED, ids=lambda case: f"{by_name(case)}-{case.rounding}")
def test_the_judge_of_rounded_parameters_notices_small_mistakes(case):
    given = comparing.inputs(case)
    spec, step = comparing.spec(case), with_residual(xla.step)
    seen = jax.jit(functools.partial(step, spec))(*given)
    comparing.judge(case, given, seen, seen)
    p, unit = seen.out[3, 3], jnp.finfo(seen.out.dtype).eps
    to_nearest = jax.jit(functools.partial(step, spec._replace(param_rounding="nearest")))
    nearest = to_nearest(*given[:6])
    mistakes = [
        seen._replace(out=seen.out.at[3, 3].set((p * (1 + 2 * unit)).astype(p.dtype))),
        seen._replace(out=seen.out.at[3, 3].set(jnp.nan)),
        seen._replace(out=given[1]),
        seen._replace(out=seen.out.astype(jnp.float32)),
    ]
    if case.rounding == "stochastic":
        mistakes.append(seen._replace(out=nearest.out))
        mistakes.append(seen._replace(out=seen.out.at[3, 3].set(given[1][3, 4])))
        dither = given[5]._replace(step=given[5].step + 1)
        other = jax.jit(functools.partial(step, spec))(*given[:5], dither)
        mistakes.append(seen._replace(out=other.out))
    else:
        residual = seen.residual
        mistakes += [
            seen._replace(residual=x)
            for x in (
                given[6],
                jnp.zeros_like(residual),
                residual.at[3, 3].set(residual[3, 3] ^ 4),
                residual.astype(jnp.int16),
            )
        ]
        # What is not read of the residual.
        without = jax.jit(functools.partial(step, spec))(*given[:6], jnp.zeros_like(residual))
        mistakes.append(without)
    for mistake in mistakes:
        with pytest.raises(AssertionError):
            comparing.judge(case, given, mistake, seen)


def test_every_case_of_a_step_has_a_name_of_its_own():
    run = Run(quick=False, interpret=False, leaves=2, shape=(1024, 1024))
    for rule in (rules.LION, rules.LAMB, rules.ADAM):
        names = [name for name, _ in check_step.checks(rule, run)]
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


def test_programs_without_time_are_not_compiled(tmp_path, monkeypatch):
    records = Records(tmp_path / "records", "paged-link", 0.0)
    monkeypatch.setattr(timing, "_compiled", pytest.fail)
    timing.measure(PARTS["paged-link"], Run(True, True, 2, (16, 512)), records)
    found = read(tmp_path / "records")
    assert len(found) == 6 and {r["reason"] for r in found} == {"out of time"}


def test_a_peak_is_judged_where_the_device_tells(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    device = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 30})
    assert peak.judge(peak.so_far(), {"parameters": 20, "slack": 10})["allowed_bytes"] == 30
    with pytest.raises(AssertionError, match="parameters"):
        peak.judge(peak.so_far(), {"parameters": 20, "slack": 9})
    device.memory_stats = lambda: None
    assert peak.judge(peak.so_far(), {"slack": 0})["peak_bytes"] is None


@pytest.mark.parametrize("case", ["lion8bit grouped", "lamb32bit pieces"])
def test_a_peak_with_all_the_state_in_it_fails(case, monkeypatch):
    run = Run(quick=True, interpret=True, leaves=2, shape=(16, 512))
    monkeypatch.setattr(peak, "SLACK", 0)
    monkeypatch.setitem(check_paged_memory._TINY, "grouped", (16, (512, 512)))
    monkeypatch.setitem(check_paged_memory._TINY, "pieces", (4, (1100, 1024)))
    *_, (_, step) = check_paged_memory.checks(case, run)
    facts: Any = step()
    most = facts["allowed_bytes"]
    spare = most - facts["allowed"]["parameters"] - facts["allowed"]["gradients"]
    monkeypatch.setattr(peak, "so_far", lambda: most)
    step()
    monkeypatch.setattr(peak, "so_far", lambda: most - spare + facts["state_bytes"])
    with pytest.raises(AssertionError, match="more than there should be"):
        step()


def test_the_judge_of_paged_steps_notices_small_mistakes():
    rng = np.random.default_rng(0)
    start = rng.standard_normal(1000).astype(np.float32)
    move = rng.standard_normal(1000).astype(np.float32) * np.float32(0.01)
    expected = [{"x": start + np.float32(i) * move} for i in range(check_paged.STEPS + 1)]

    def with_step(factor):
        return [*expected[:-1], {"x": start + np.float32(factor * check_paged.STEPS) * move}]

    assert check_paged.compare(expected, expected, exact=True)["bitwise"]
    seen = check_paged.compare(with_step(1 + 1e-5), expected, exact=False)
    assert not seen["bitwise"] and 0 < seen["worst_of_bound"] <= 1
    for factor, exact in ((1 + 1e-5, True), (1.001, False), (np.nan, False)):
        with pytest.raises(AssertionError):
            check_paged.compare(with_step(factor), expected, exact)


def test_ratios_of_paging():
    def timing_of(name, paging, ms, **about):
        record = dict(kind="timing", status="measured", name=name, paging=paging, median_ms=ms)
        return record | dict(gb_per_s=1.0, bytes=1, min_ms=ms, elements=10**9) | about

    links = [
        timing_of("in", "link", 1, direction="in", gb_per_s=40.0),
        timing_of("in again", "link", 1, direction="in", gb_per_s=50.0),
        timing_of("out", "link", 1, direction="out", gb_per_s=50.0),
        timing_of("both", "link", 1, direction="both", gb_per_s=80.0),
    ]
    stream = dict(optimizer="lion8bit", link_bytes_in=1e9, link_bytes_out=1e9)
    stream |= dict(peak_bytes=2**30, peak_is_its_own=False)
    (_, paged, *_), (_, training, *_), *_ = report_paged.TARGETS
    common = dict(tokens=4096, clip=False, peak_bytes=None)
    records = [
        *links,
        timing_of("resident", "resident", 10.0, optimizer="lion8bit", peak_bytes=None),
        timing_of(paged, "stream", 30.0, **stream),
        timing_of("training", "training", 100.0, which="resident", **common),
        timing_of(training, "training", 104.0, which="paged", **common),
    ]
    ceiling, link = report.add_ratios(records)
    assert ceiling is None and link == {"in": 50.0, "out": 50.0, "both": 80.0}
    seen = records[5]
    # Both directions share the link: 2 GB at 80 GB/s.
    assert seen["transfer_ms"] == pytest.approx(25)
    assert seen["of_link"] == pytest.approx(25 / 30)
    assert seen["overlap"] == pytest.approx(30 / 25)
    assert seen["link_gb_per_s_in"] == pytest.approx(1000 / 30)
    assert records[-1]["slowdown"] == pytest.approx(0.04)
    met = {t["what"]: t["met"] for t in report.targets(records, "any card") if t["seen"]}
    assert met == {"share of link bandwidth": True, "slowdown of training": False}
    rows = report_paged.table({"timings": records, "link_gb_per_s": link}).rows
    assert len(rows) == len(records) and "<= 1.00" in rows[5]


def test_every_target_is_of_a_program_that_is_timed():
    run = Run(quick=False, interpret=False, leaves=2, shape=(1024, 1024))
    names = set()
    for name, part in PARTS.items():
        if name.startswith("paged-") and part.kind == "timing":
            names |= {program.name for program in part.items(run)}
    assert {name for _, name, *_ in report_paged.TARGETS} <= names
    parts = sum(len(list(PARTS[name].items(run))) for name in PARTS if name.startswith("paged-"))
    assert parts == len(names)  # none twice


def test_training_is_left_out_where_memory_is_short(monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 10**9})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    with pytest.raises(Skipped, match="needs 6 GB"):
        time_training._check_memory(10**9, 10**6)


class FakeTensor:
    def __init__(self, shape, dtype, device):
        self.shape, self._itemsize = shape if isinstance(shape, tuple) else (shape,), dtype

    def normal_(self, std=1.0):
        return self

    def numel(self):
        return int(np.prod(self.shape))

    def element_size(self):
        return self._itemsize


def fake_torch(free):
    event = types.SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 2.0)
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        mem_get_info=lambda: (free, 2 * free),
        synchronize=lambda: None,
        empty_cache=lambda: None,
        Event=lambda enable_timing: event,
    )
    return types.SimpleNamespace(
        **dict(bfloat16=2, float32=4, uint8=1, empty=FakeTensor, cuda=cuda),
        nn=types.SimpleNamespace(Parameter=lambda x: x),
        is_tensor=lambda x: isinstance(x, FakeTensor),
    )


class FakePaged:
    def __init__(self, params, lr, weight_decay):
        self.params, self.state = params, {}

    def step(self):
        for i, p in enumerate(self.params):
            self.state[i] = {"step": 1, "state1": FakeTensor(p.shape, 1, "cuda")}


def test_the_paged_peer_is_timed_with_room_and_without(monkeypatch):
    optim = types.SimpleNamespace(PagedLion8bit=FakePaged)
    monkeypatch.setitem(sys.modules, "torch", fake_torch(2**34))
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(optim=optim))
    run = Run(quick=True, interpret=False, leaves=2, shape=(1024, 1024))
    (_, roomy), (_, crowded) = [(name, f()) for name, f in torch_peers.paged(run)]
    assert roomy["elements"] == 2**21 and roomy["state_bytes_per_element"] == 1
    assert "link_bytes_in" not in roomy and "ballast_bytes" in crowded
    assert crowded["link_bytes_in"] == 2**21 * (1 + 4 / 256)
    assert crowded["ballast_bytes"] == 2**34 - 2**29


def test_triton_s_kernels_are_checked_and_timed_where_they_are(monkeypatch):
    run = Run(quick=False, interpret=False, leaves=2, shape=(1024, 1024))
    monkeypatch.setattr(installed, "why_not", lambda: None)
    for name in ("lion", "lamb", "adam", "lamb_amsgrad"):
        theirs, ours = (
            [what for what, _ in PARTS[f"{by}-{name}"].items(run)] for by in ("triton", "step")
        )
        assert theirs == ours and len(ours) > 40
    programs = list(PARTS["triton"].items(run))
    assert all("triton" in program.name for program in programs)
    mosaics = {program.name for program in PARTS["ours"].items(run)}
    names = (x.name.replace(", triton", "").replace(" triton", " mosaic") for x in programs)
    # But for the number of elements, every one has one of Mosaic's to be compared with.
    assert {x for x in names if "elements in a thread" not in x} <= mosaics


def test_without_triton_its_parts_are_skipped_with_the_reason(monkeypatch, tmp_path):
    run = Run(quick=False, interpret=False, leaves=2, shape=(1024, 1024))
    monkeypatch.setattr(installed, "why_not", lambda: "triton is not installed")
    records = Records(tmp_path / "records", "triton-lion", 60.0 + time.monotonic())
    for name in ("triton-lion", "triton-quantize"):
        for what, function in PARTS[name].items(run):
            records.do("check", f"{name}: {what}", function)
    timing.measure(PARTS["triton"], run, records)
    found = read(tmp_path / "records")
    assert [r["status"] for r in found] == ["skipped", "skipped", "absent"]
    assert {r["reason"] for r in found} == {"triton is not installed"}
