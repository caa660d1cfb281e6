import json

import pytest

from optax_lamblion.cli._memory import parse_count


def test_json_reports_every_variant(run_cli):
    status, out, _ = run_cli("memory", "--params", "1e6", "--json")
    found = json.loads(out)
    per_parameter = {row["name"]: row["bytes_per_parameter"] for row in found["optimizers"]}
    assert status == 0
    assert found["parameters"] == 10**6
    # 576 of the elements are a leaf of their own, too small for 8 bits: hence 0.002 and 0.004.
    assert per_parameter == pytest.approx(
        {
            "optax.lion": 4,
            "optax.lamb": 8,
            "optax.adamw": 8,
            "lion32bit": 4,
            "lamb32bit": 8,
            "lion8bit": 1 + 4 / 256,
            "lamb8bit": 2 + 8 / 256,
            "paged_lion32bit": 4,
            "paged_lamb32bit": 8,
            "paged_lion8bit": 1 + 4 / 256,
            "paged_lamb8bit": 2 + 8 / 256,
        },
        abs=5e-3,
    )


def test_paged_state_is_not_on_the_device(run_cli):
    _, out, _ = run_cli("memory", "--params", "1e9", "--json")
    for row in json.loads(out)["optimizers"]:
        if row["name"].startswith("paged_"):
            assert row["device_bytes"] < 1e-4 * row["state_bytes"]
        else:
            assert row["device_bytes"] == row["state_bytes"]


def test_state_bytes_are_those_of_the_real_state(run_cli):
    import jax
    import jax.numpy as jnp

    from optax_lamblion import lamb8bit
    from optax_lamblion.demo import shapes

    _, out, _ = run_cli("memory", "--params", "100_001", "--json")
    claimed = {row["name"]: row["state_bytes"] for row in json.loads(out)["optimizers"]}
    params = {k: jnp.zeros(shape) for k, shape in shapes.anonymous_model(100_001).items()}
    state = lamb8bit(1e-3).init(params)
    assert claimed["lamb8bit"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("model", ["gpt2-124m", "llama-8b", "resnet50"])
def test_named_models_print_a_table(run_cli, model):
    status, out, _ = run_cli("memory", "--model", model)
    assert status == 0
    assert model in out
    assert all(name in out for name in ("optax.adamw", "lion8bit", "lamb8bit", "GiB"))


def test_half_precision_parameters_do_not_change_the_8bit_state(run_cli):
    _, wide, _ = run_cli("memory", "--params", "1e6", "--json")
    _, narrow, _ = run_cli("memory", "--params", "1e6", "--dtype", "bfloat16", "--json")
    wide, narrow = (
        {r["name"]: r["state_bytes"] for r in json.loads(x)["optimizers"]} for x in (wide, narrow)
    )
    assert wide["lion8bit"] == narrow["lion8bit"]
    assert narrow["optax.lion"] < wide["optax.lion"]


@pytest.mark.parametrize(
    ("given", "count"),
    [("7e9", 7 * 10**9), ("7B", 7 * 10**9), ("1.5k", 1500), ("124_439_808", 124_439_808)],
)
def test_counts_are_read_as_people_write_them(given, count):
    assert parse_count(given) == count


@pytest.mark.parametrize("given", ["0", "-5", "1.5", "many", "nan", "1e99", "1e999", "", "1..2"])
def test_impossible_counts_are_refused(run_cli, given):
    status, _, err = run_cli("memory", f"--params={given}")
    assert status == 2
    assert "--params 7e9" in err


def test_unknown_model_is_refused_with_the_choices(run_cli):
    status, _, err = run_cli("memory", "--model", "gpt5")
    assert status == 2
    assert "gpt2-124m, llama-8b, resnet50" in err
