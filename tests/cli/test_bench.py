import json

import pytest


def test_json_compares_each_family_with_optax(run_cli):
    status, out, _ = run_cli("bench", "--shape", "64x256", "--repeats", "2", "--json")
    found = {row["optimizer"]: row for row in json.loads(out)["results"]}
    assert status == 0
    assert {name: row["baseline"] for name, row in found.items()} == {
        "optax.lion": "optax.lion",
        "lion32bit": "optax.lion",
        "lion8bit": "optax.lion",
        "optax.lamb": "optax.lamb",
        "lamb32bit": "optax.lamb",
        "lamb8bit": "optax.lamb",
        "optax.adamw": "optax.adamw",
        "adamw32bit": "optax.adamw",
        "adamw8bit": "optax.adamw",
    }
    assert found["optax.lion"]["ratio"] == 1
    assert all(row["median_ms"] > 0 and row["ratio"] > 0 for row in found.values())
    assert found["lion8bit"]["state_bytes_per_parameter"] == pytest.approx(1.016, abs=1e-3)


def test_table_in_half_precision(run_cli):
    status, out, _ = run_cli("bench", "--shape", "8192", "--dtype", "bfloat16", "--repeats", "1")
    assert status == 0
    assert "bfloat16" in out
    assert "lamb8bit" in out


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [(["--shape", "4096*4096"], "4096x4096"), (["--shape", "0x8"], "positive"),
     (["--repeats", "0"], "1 or more")],
)  # fmt: skip
def test_wrong_input_is_refused(run_cli, arguments, remedy):
    status, _, err = run_cli("bench", *arguments)
    assert status == 2
    assert remedy in err
