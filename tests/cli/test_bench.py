import json

import pytest

from optax_lamblion.cli import _bench
from optax_lamblion.demo import contest


@pytest.fixture
def only_lion(monkeypatch):
    monkeypatch.setattr(contest, "FAMILIES", ("lion",))


def test_json_compares_each_family_with_optax(run_cli, monkeypatch):
    families = "lion", "adamw"  # LAMB takes the compiler longest
    assert set(families) < set(contest.FAMILIES)
    monkeypatch.setattr(contest, "FAMILIES", families)
    status, out, _ = run_cli("bench", "--shape", "64x256", "--repeats", "2", "--json")
    results = json.loads(out)["results"]
    found = {(row["optimizer"], row["way"]): row for row in results}
    assert status == 0
    ways = ("apply_fused", "update")
    for family in families:
        of_family = {key for key, row in found.items() if row["baseline"] == f"optax.{family}"}
        ours = {(f"{family}{bits}bit", way) for bits in (8, 32) for way in ways}
        assert of_family - {("copy", "copy")} == ours | {(f"optax.{family}", "update")}
    assert [row["optimizer"] for row in results].count("copy") == 2
    assert all(row["median_ms"] > 0 and row["ratio"] > 0 for row in results)
    assert all(row["ratio"] == 1 for row in results if row["optimizer"] == row["baseline"])
    assert all(row["of_copy"] == 1 for row in results if row["optimizer"] == "copy")
    lion = found["lion8bit", "apply_fused"]
    assert lion["state_bytes_per_parameter"] == pytest.approx(1.016, abs=1e-3)


def test_table_in_half_precision(run_cli, only_lion):
    status, out, _ = run_cli("bench", "--shape", "8192", "--dtype", "bfloat16", "--repeats", "1")
    assert status == 0
    assert "bfloat16" in out
    assert "lion8bit, update" in out


def test_a_list_of_shapes_by_name(run_cli, only_lion, monkeypatch):
    monkeypatch.setitem(_bench.KNOWN, "two", lambda: {"a": (64,), "b": (32, 4)})
    status, out, _ = run_cli("bench", "--model", "two", "--repeats", "1", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["model"], found["shape"], found["parameters"]) == ("two", None, 192)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [(["--shape", "4096*4096"], "4096x4096"), (["--shape", "0x8"], "positive"),
     (["--repeats", "0"], "1 or more"), (["--model", "gpt2-125m"], "gpt2-124m"),
     (["--model", "leaf-16m", "--shape", "8"], "Leave one out"),
     (["--model", "llama-70b"], "smaller one")],
)  # fmt: skip
def test_wrong_input_is_refused(run_cli, arguments, remedy):
    status, _, err = run_cli("bench", *arguments)
    assert status == 2
    assert remedy in err
