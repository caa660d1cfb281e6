import json

import jax

import optax_lamblion
from optax_lamblion import _implementation


def test_json_names_versions_devices_and_implementations(run_cli):
    status, out, _ = run_cli("info", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["optax-lamblion"] == optax_lamblion.__version__
    assert len(found["devices"]) == jax.local_device_count()
    assert {row["optimizer"] for row in found["optimizers"]} == {
        f"{prefix}{family}{bits}"
        for prefix in ("", "paged_")
        for family in ("lion", "lamb", "adamw")
        for bits in ("", "8bit", "32bit")
    }
    assert all(row["implementation"] and row["reason"] for row in found["optimizers"])


def test_a_platform_without_pinned_memory_is_told(run_cli, monkeypatch):
    monkeypatch.setattr(_implementation, "memory_kinds", lambda device: {"device", "other"})
    _, out, _ = run_cli("info", "--json")
    rows = {row["optimizer"]: row for row in json.loads(out)["optimizers"]}
    assert rows["paged_lion8bit"]["implementation"] == "none"
    why = "CPU has no memory of kind pinned_host, only device, other"
    assert rows["paged_lion8bit"]["reason"] == why
    assert rows["lion8bit"]["implementation"] != "none"


def test_tables_say_the_same(run_cli):
    status, out, _ = run_cli("info")
    assert status == 0
    assert jax.__version__ in out
    assert str(jax.local_devices()[0]) in out
    assert "lamb8bit" in out
