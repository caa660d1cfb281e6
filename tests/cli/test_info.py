import json

import jax

import optax_lamblion
from optax_lamblion import _implementation
from pallas_kernels import dispatch
from tests.kernels.test_dispatch import (
    MI300,
    NOT_INSTALLED,
    T4,
    machine,  # noqa: F401
)


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


def rows_of(run_cli, *names):
    """Which implementations run, and why the others do not; and what optimizers take."""
    _, out, _ = run_cli("info", "--json")
    found = json.loads(out)
    assert [row["implementation"] for row in found["implementations"]] == [
        *dispatch.IMPLEMENTATIONS
    ]
    assert all(
        row["what"] and row["runs"] == (not row["reason"]) for row in found["implementations"]
    )
    why = {row["implementation"]: row["reason"] for row in found["implementations"]}
    taken = {row["optimizer"]: row["implementation"] for row in found["optimizers"]}
    return why, [taken[name] for name in names]


def test_it_says_of_every_implementation_whether_it_runs_here(run_cli, machine):  # noqa: F811
    names = ("lion8bit", "lamb8bit", "lion32bit")
    machine()
    why, taken = rows_of(run_cli, *names)
    assert why == {
        "mosaic": "it needs an NVIDIA GPU, and this is a CPU",
        "triton": "it needs an NVIDIA or AMD GPU, and this is a CPU",
        "xla": "",
    }
    assert taken == ["xla", "xla", "xla"]
    machine(T4)
    why, taken = rows_of(run_cli, *names)
    assert why["triton"] == why["xla"] == "" and "has 7.5" in why["mosaic"]
    assert taken == ["triton", "triton", "xla"]
    machine(T4, triton=False)
    why, taken = rows_of(run_cli, *names)
    assert why["triton"] == NOT_INSTALLED and taken == ["xla", "xla", "xla"]
    machine(MI300)
    why, taken = rows_of(run_cli, *names)
    assert why == {
        "mosaic": "it needs an NVIDIA GPU, and this is an AMD GPU",
        "triton": "",
        "xla": "",
    }
    assert taken == ["triton", "triton", "xla"]


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
    assert "it needs an NVIDIA or AMD GPU, and this is a CPU" in out
