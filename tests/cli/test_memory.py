import json
import re

import numpy as np
import pytest

from optax_lamblion.cli import _fitting
from optax_lamblion.cli._footprint import Room, Setting
from optax_lamblion.cli._quantities import parse_bytes, parse_count
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS

MODELS = list(shapes.MODELS)


@pytest.fixture(autouse=True)
def _no_share(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)


def answer(run_cli, *arguments):
    """What `--json` says."""
    status, out, err = run_cli("memory", *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def table_rows(out):
    """The cells of the rows of the first plain table, by the first one of each."""
    lines = out.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    columns = [part.split() for part in lines[rule - 1 :]]
    end = next(i for i, cells in enumerate(columns) if not cells)
    return {cells[0]: cells[1:] for cells in columns[2:end]}


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
            "adamw32bit": 8,
            "lion8bit": 1 + 4 / 256,
            "lamb8bit": 2 + 8 / 256,
            "adamw8bit": 2 + 8 / 256,
            "paged_lion32bit": 4,
            "paged_lamb32bit": 8,
            "paged_adamw32bit": 8,
            "paged_lion8bit": 1 + 4 / 256,
            "paged_lamb8bit": 2 + 8 / 256,
            "paged_adamw8bit": 2 + 8 / 256,
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

    _, out, _ = run_cli("memory", "--params", "100_001", "--json")
    claimed = {row["name"]: row["state_bytes"] for row in json.loads(out)["optimizers"]}
    params = {k: jnp.zeros(shape) for k, shape in shapes.anonymous_model(100_001).items()}
    state = lamb8bit(1e-3).init(params)
    assert claimed["lamb8bit"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("model", ["bert-large", "llama-8b", "resnet50"])
def test_named_models_print_a_table(run_cli, model):
    status, out, _ = run_cli("memory", "--model", model)
    assert status == 0
    assert model in out
    assert all(name in out for name in ("optax.adamw", "lion8bit", "lamb8bit", "adamw8bit", "GiB"))


def test_half_precision_parameters_do_not_change_the_8bit_state(run_cli):
    _, wide, _ = run_cli("memory", "--params", "1e6", "--json")
    _, narrow, _ = run_cli("memory", "--params", "1e6", "--dtype", "bfloat16", "--json")
    wide, narrow = (
        {r["name"]: r["state_bytes"] for r in json.loads(x)["optimizers"]} for x in (wide, narrow)
    )
    assert wide["lion8bit"] == narrow["lion8bit"]
    assert narrow["optax.lion"] < wide["optax.lion"]


def test_optimizers_can_be_chosen(run_cli):
    chosen = ["--optimizer", "paged_lion", "--optimizer", "optax.lion,lion8bit"]
    found = answer(run_cli, "--params", "1e6", *chosen)
    assert [row["name"] for row in found["optimizers"]] == ["paged_lion", "optax.lion", "lion8bit"]
    _, out, _ = run_cli("memory", "--params", "1e6", *chosen)
    # The share is that of AdamW, which is not shown.
    assert {name: cells[-1] for name, cells in table_rows(out).items()} == {
        "paged_lion": "50",
        "optax.lion": "50",
        "lion8bit": "13",
    }


# ------------------------------------------------------------------------------------- training


def test_a_training_step_holds_its_parts(run_cli):
    """The sum of the parts by their names; each is tested in `test_footprint.py`."""
    found = answer(
        run_cli, "--model", "vit-b-16", "--dtype=bfloat16", "--master", "--grad-dtype=float32"
    )
    count = found["parameters"]
    for row in found["optimizers"]:
        part = row["per_device"]
        assert part["parameter_bytes"] == 2 * count
        assert part["master_bytes"] == part["gradient_bytes"] == 4 * count
        assert part["device_state_bytes"] == row["device_bytes"]
        elsewhere = part.pop("host_state_bytes")
        assert elsewhere + part["device_state_bytes"] == row["state_bytes"]
        assert part.pop("total_device_bytes") == sum(part.values())
        assert row["fits"] is None


def test_the_table_has_the_numbers_of_the_json(run_cli):
    arguments = ["--params=8e9", "--dtype=bfloat16", "--master", "--device-memory=80GB"]
    found = answer(run_cli, *arguments)
    status, out, _ = run_cli("memory", *arguments)
    rows = table_rows(out)
    assert status == 0
    assert list(rows) == [row["name"] for row in found["optimizers"]]
    for row in found["optimizers"]:
        part = row["per_device"]
        expected = [
            part["device_state_bytes"],
            part["estimated_step_bytes"],
            part["total_device_bytes"],
            60 * 10**9 - part["total_device_bytes"],  # of which JAX takes 75 %
            part["host_state_bytes"],
        ]
        assert rows[row["name"]] == [f"{n / 2**30:.2f}" for n in expected]
    for key in ("parameter_bytes", "master_bytes", "gradient_bytes"):
        assert f"\n{found['optimizers'][0]['per_device'][key] / 2**30:.2f} for " in out


def test_what_fits_is_what_leaves_room(run_cli):
    arguments = ["--params=8e9", "--dtype=bfloat16", "--device-memory=64GB"]  # 48 GB for JAX
    rows = answer(run_cli, *arguments)["optimizers"]
    fits = {row["name"]: row["fits"] for row in rows}
    # 16 GB of parameters and as many of gradients, and momentum in 8 bits, in 16 and in 32.
    assert (fits["lion8bit"], fits["optax.lion"], fits["lion32bit"]) == (True, False, False)
    _, out, _ = run_cli("memory", *arguments)
    fit = [name for name, fit in fits.items() if fit]
    verdict = f"{len(fit)} of {len(fits)} fit into 44.70 GiB without activations: {', '.join(fit)}."
    assert verdict in " ".join(out.split())
    assert "What would fit" not in out


def test_what_fits_exactly_fits(run_cli):
    arguments = ["--params=1e6", "--optimizer=lion8bit"]
    (row,) = answer(run_cli, *arguments)["optimizers"]
    size = row["per_device"]["total_device_bytes"]
    for room, fit in [(size, True), (size - 1, False)]:
        words = [f"--device-memory={room / 1000}KB", "--memory-fraction=1"]
        found = answer(run_cli, *arguments, *words)
        assert found["device_memory_bytes"] == room
        assert found["optimizers"][0]["fits"] is fit


@pytest.mark.parametrize(
    ("words", "fraction"),
    [([], 0.75), (["--memory-fraction=0.9"], 0.9), (["--platform=cpu"], 1.0)],
    ids=["gpu", "as said", "cpu"],
)
def test_jax_does_not_take_all_of_a_gpu(run_cli, words, fraction):
    """75 % is the default of XLA_PYTHON_CLIENT_MEM_FRACTION; a CPU has no such thing."""
    arguments = ["--params=1e9", "--optimizer=lion8bit", "--device-memory=24GiB", *words]
    found = answer(run_cli, *arguments)
    assert found["memory_fraction"] == fraction
    _, out, _ = run_cli("memory", *arguments)
    used = found["optimizers"][0]["per_device"]["total_device_bytes"]
    (cells,) = table_rows(out).values()
    assert cells[3] == f"{fraction * 24 - used / 2**30:.2f}"


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_environment_of_jax_is_heard(run_cli, monkeypatch, name):
    monkeypatch.setenv(name, "0.5")
    arguments = ["--params=1e6", "--optimizer=lion8bit", "--device-memory=24GiB"]
    assert answer(run_cli, *arguments)["memory_fraction"] == 0.5
    assert answer(run_cli, *arguments, "--memory-fraction=0.9")["memory_fraction"] == 0.9
    assert answer(run_cli, *arguments, "--platform=cpu")["memory_fraction"] == 1
    _, out, _ = run_cli("memory", *arguments)
    assert f"50 % of a GPU's memory ({name} is set here)" in " ".join(out.split())
    monkeypatch.setenv(name, "lots")
    status, _, err = run_cli("memory", *arguments)
    assert status == 2
    assert f"'lots' of `{name}`" in err


NOTHING_FITS = {
    "one optimizer": ["--model=gemma-2-2b", "--device-memory=24GiB", "--optimizer=optax.adamw"],
    "many devices": ["--model=llama-70b", "--device-memory=80GiB", "--dtype=bfloat16",
                     "--optimizer=lamb32bit"],
    "too little": ["--params=1e9", "--device-memory=1GB", "--devices=3", "--optimizer=lion8bit"],
    "a master copy": ["--params=3e9", "--device-memory=30GiB", "--dtype=float16", "--master",
                      "--optimizer=adamw32bit"],
    "residuals": ["--params=3e9", "--device-memory=20GiB", "--dtype=bfloat16",
                  "--param-rounding=compensated", "--optimizer=lion8bit"],
    "gradients": ["--params=3e9", "--device-memory=24GiB", "--dtype=bfloat16",
                  "--grad-dtype=float32", "--optimizer=lion8bit"],
    "a CPU": ["--params=3e9", "--device-memory=2GiB", "--platform=cpu", "--optimizer=lion8bit"],
}  # fmt: skip


def changed(arguments, options):
    """A command line with these options added or changed."""
    for option in options:
        if option.startswith("without "):
            arguments = [word for word in arguments if word != option.split()[1]]
            continue
        words = option.split()
        for name, value in zip(words[::2], words[1::2], strict=True):
            instead = [name, "--model"] if name == "--params" else [name]
            arguments = [x for x in arguments if x.split("=")[0] not in instead]
            arguments = [*arguments, f"{name}={value}"]
    return arguments


@pytest.mark.parametrize("arguments", NOTHING_FITS.values(), ids=NOTHING_FITS)
def test_where_nothing_fits_it_says_what_would(run_cli, arguments):
    found = answer(run_cli, *arguments)
    assert not any(row["fits"] for row in found["optimizers"])
    ways = found["what_would_fit"]
    assert len(ways) >= 2
    for way in ways:
        (row,) = answer(run_cli, *changed(arguments, way["options"]))["optimizers"]
        assert row["fits"], way
        assert row["name"] == way["optimizer"]
        assert row["per_device"]["total_device_bytes"] == way["total_device_bytes"]
        assert way["left_bytes"] >= 0


def test_the_least_changes_come_first():
    """Of 3 billion parameters, by hand: 12 GB in float32, and as much of gradients."""
    model = shapes.anonymous_model(3 * 10**9)

    def ways(gigabytes, name, **how):
        room = Room("", gigabytes * 10**9, 0.75)
        found = _fitting.ways([OPTIMIZERS[name]], Setting(model, **how), room)
        return [(way.optimizer, *way.options[1:]) for way in found]

    # 24 GB and 6 of state are more than 0.75 of 36, and less than 0.95 of it.
    assert ways(36, "adamw8bit")[:4] == [
        ("adamw8bit", "--memory-fraction 0.84"),
        ("adamw8bit", "--grad-dtype bfloat16"),
        ("adamw8bit", "--dtype bfloat16", "--param-rounding compensated"),
        ("paged_adamw8bit",),
    ]
    # What Optax's optimizers do with 16-bit parameters is no way out.
    assert all(
        name != "optax.adamw"
        for name, *options in ways(36, "optax.adamw")
        if "--dtype bfloat16" in options
    )
    # One byte for each parameter less is enough, and it is not offered beside a lesser change.
    tight = {"dtype": "bfloat16", "param_rounding": "compensated"}
    assert ways(23, "lion8bit", **tight)[:2] == [
        ("lion8bit", "--memory-fraction 0.79"),
        ("lion8bit", "--param-rounding stochastic"),
    ]


def test_what_would_fit_is_a_table(run_cli):
    arguments = NOTHING_FITS["one optimizer"]
    ways = answer(run_cli, *arguments)["what_would_fit"]
    _, out, _ = run_cli("memory", *arguments)
    assert "None of them fits into 18.00 GiB" in out
    lines = out.partition("What would fit")[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("---")) + 1
    for line, way in zip(lines[start : start + len(ways)], ways, strict=True):
        name, total, left, *words = line.split()
        assert name == way["optimizer"]
        assert total == f"{way['total_device_bytes'] / 2**30:.2f}"
        assert left == f"{way['left_bytes'] / 2**30:.2f}"
        options = " ".join(x for x in way["options"] if not x.startswith("--optimizer"))
        assert " ".join(words) == (options or "as they are")
    assert "XLA_CLIENT_MEM_FRACTION" in out


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_rounding_is_for_16_bit_parameters(run_cli, rounding):
    arguments = ["memory", "--params=1e6", f"--param-rounding={rounding}"]
    status, _, err = run_cli(*arguments)
    assert status == 2
    assert "Add `--dtype bfloat16`" in err
    status, _, err = run_cli(*arguments, "--dtype=bfloat16", "--master")
    assert status == 2
    assert "Leave one of them out" in err


def test_a_compensated_parameter_has_one_byte_more(run_cli):
    arguments = ["--params=1e6", "--dtype=bfloat16", "--optimizer=lion8bit,optax.lion"]
    nearest, found = (
        answer(run_cli, *arguments, *more)["optimizers"]
        for more in ([], ["--param-rounding=compensated"])
    )
    assert found[0]["state_bytes"] == nearest[0]["state_bytes"] + 10**6
    assert found[1] == nearest[1]


@pytest.mark.parametrize("given", ["0", "-1", "1.01", "nan", "75%", "half"])
def test_impossible_fractions_are_refused(run_cli, given):
    words = ["--params=1e6", "--device-memory=24GiB", f"--memory-fraction={given}"]
    status, _, err = run_cli("memory", *words)
    assert status == 2
    assert "`--memory-fraction`" in err
    assert "such as 0.9" in err


def test_a_fraction_of_a_cpu_is_refused(run_cli):
    words = ["--params=1e6", "--device-memory=24GiB", "--memory-fraction=0.5", "--platform=cpu"]
    status, _, err = run_cli("memory", *words)
    assert status == 2
    assert "is for GPUs" in err


def test_a_fraction_of_no_memory_is_refused(run_cli):
    status, _, err = run_cli("memory", "--params=1e6", "--memory-fraction=0.5")
    assert status == 2
    assert "--device-memory 24GiB" in err


def test_devices_share_evenly(run_cli):
    arguments = ["--model=gemma-2-9b", "--optimizer=lamb8bit"]
    (one,) = answer(run_cli, *arguments)["optimizers"]
    (many,) = answer(run_cli, *arguments, "--devices=64")["optimizers"]
    assert many["state_bytes"] == one["state_bytes"]
    for key, size in one["per_device"].items():
        assert many["per_device"][key] == pytest.approx(size / 64, abs=1), key


@pytest.mark.parametrize(
    "option",
    [
        ["--training"],
        ["--grad-dtype=float32"],
        ["--master"],
        ["--devices=2"],
        ["--device-memory=24GiB"],
        ["--platform=cpu"],
    ],
    ids=lambda option: option[0],
)
def test_every_option_of_training_asks_for_its_table(run_cli, option):
    arguments = ["memory", "--model=vit-b-16", "--dtype=bfloat16", "--optimizer=lion8bit"]
    _, plain, _ = run_cli(*arguments)
    _, out, _ = run_cli(*arguments, *option)
    assert " step " not in plain
    assert " step " in out
    assert "Not counted: activations" in " ".join(out.split())


@pytest.mark.parametrize("option", ["--devices=2", "--device-memory=24GiB", "--platform=cpu"])
def test_notes_say_what_the_numbers_leave_out(run_cli, option):
    words = {
        "--devices=2": "Everything is sharded evenly",
        "--device-memory=24GiB": "XLA_CLIENT_MEM_FRACTION",
        "--platform=cpu": "optimizer's step on a CPU",
    }
    _, out, _ = run_cli("memory", "--params=1e6", "--optimizer=lion8bit", option)
    out = " ".join(out.split())
    assert {key for key, word in words.items() if word in out} == {option}


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("terminal", [True, False])
def test_answers_are_no_wider_than_they_may_be(run_cli, monkeypatch, width, terminal):
    """With the longest name, and numbers of seven characters in each column."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    few = ["--model=llama-70b", "--optimizer=paged_adamw32bit,optax.adamw"]
    for more in [[], ["--dtype=bfloat16", "--master", "--device-memory=24GiB", "--devices=4"]]:
        _, out, _ = run_cli("memory", *few, *more)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("optax.adamw ") for line in lines) <= 4


@pytest.mark.parametrize("width", [60, 40])
def test_narrow_terminals_show_every_digit(run_cli, monkeypatch, width):
    arguments = ["memory", "--model=llama-70b", "--optimizer=paged_adamw32bit",
                 "--device-memory=800GiB"]  # fmt: skip
    _, out, _ = run_cli(*arguments)
    (wide,) = table_rows(out).values()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out, _ = run_cli(*arguments)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    parts = [line.split()[1:] for line in lines if line.split()[:1] == ["paged_adamw32bit"]]
    assert sum(parts, []) == wide
    assert (len(parts) > 1) == (width == 40)
    assert max(map(len, lines)) <= width


# ------------------------------------------------------------------------------- what is given


def test_the_list_has_every_model_with_its_parameters(run_cli):
    status, out, _ = run_cli("memory", "--list")
    assert status == 0
    assert table_rows(out)["bert-large"] == ["335,141,888", "295"]
    assert list(table_rows(out)) == MODELS
    assert answer(run_cli, "--list")[0] == {
        "name": "gpt2-124m",
        "parameters": 124_439_808,
        "tensors": 148,
    }


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
    status, _, err = run_cli("memory", "--model", "zzz")
    assert status == 2
    assert ", ".join(MODELS) in err
    assert "Did you mean" not in err


@pytest.mark.parametrize(
    ("given", "near"), [("gpt2", "gpt2-xl"), ("Llama-3-8B", "llama-8b"), ("vit-b16", "vit-b-16")]
)
def test_an_unknown_model_gets_its_nearest_ones(run_cli, given, near):
    status, _, err = run_cli("memory", "--model", given)
    assert status == 2
    assert near in err.partition("Did you mean ")[2].partition("?")[0]


def test_unknown_optimizer_is_refused_with_the_choices(run_cli):
    status, _, err = run_cli("memory", "--params=1e6", "--optimizer=adam")
    assert status == 2
    assert "optax.adamw" in err


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("80GB", 80 * 10**9),
        ("1.5 tib", 3 * 2**39),
        ("512MB", 512 * 10**6),
        ("640kib", 640 * 1024),
    ],
)
def test_sizes_of_memory_are_read_with_their_unit(given, size):
    assert parse_bytes(given) == size


@pytest.mark.parametrize("given", ["24", "24G", "-1GB", "0GB", "GB", "1e99GB", "nanGB"])
def test_impossible_sizes_of_memory_are_refused(run_cli, given):
    status, _, err = run_cli("memory", "--params=1e6", f"--device-memory={given}")
    assert status == 2
    assert "--device-memory 24GiB" in err


def test_a_model_may_be_a_file(run_cli, tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.zeros((64, 64), np.float16)}, tmp_path / "model.safetensors")
    arguments = [f"--model={tmp_path}", "--optimizer=lion8bit"]
    found = answer(run_cli, *arguments)
    assert found["parameters"] == 4096
    for more in ([], ["--training"]):
        _, out, _ = run_cli("memory", *arguments, *more)
        assert "1 tensors, stored as F16." in out


def test_names_in_a_file_are_no_commands_to_a_terminal(run_cli, tmp_path):
    config = {"model_type": "gpt2", "architectures": ["\x1b[2J"], "n_layer": 1, "n_embd": 8,
              "vocab_size": 9}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for more in ([], ["--training"]):
        status, out, _ = run_cli("memory", f"--model={tmp_path}", *more)
        assert status == 0
        assert "\x1b" not in out
        assert "saved from \\x1b[2J" in out


@pytest.mark.parametrize("given", ["0", "-1"])
def test_impossible_numbers_of_devices_are_refused(run_cli, given):
    status, _, err = run_cli("memory", "--params=1e6", f"--devices={given}")
    assert status == 2
    assert "1 or more" in err


def test_a_master_copy_of_float32_parameters_is_refused(run_cli):
    status, _, err = run_cli("memory", "--params=1e6", "--master")
    assert status == 2
    assert "--dtype bfloat16" in err
