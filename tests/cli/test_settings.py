from pathlib import Path

import pytest

from optax_lamblion.cli import _runs, _settings
from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.demo.ways import Way


def read_settings(given):
    return _settings.read_settings(TrainOptions(**given))


def test_defaults_compare_every_family_with_optax():
    settings = read_settings({})
    assert [row.name for row in settings.rows] == [
        "optax.lion", "lion8bit", "optax.lamb", "lamb8bit", "optax.adamw", "adamw8bit",
    ]  # fmt: skip
    assert settings.learning_rates["lion8bit"] == settings.learning_rates["optax.lion"]


def test_digits_have_defaults_of_their_own():
    settings = read_settings({"data": "digits"})
    assert (settings.batch_size, settings.text) == (64, None)


@pytest.mark.parametrize(
    "given", [["1e-3", "lion8bit=3e-4"], ["lion8bit=3e-4,1e-3"], ["lion8bit = 3e-4", " 1e-3"]]
)
def test_a_named_learning_rate_wins_over_the_general_one(given):
    settings = read_settings({"optimizers": ["lion8bit,optax.lion"], "learning_rate": given})
    assert settings.learning_rates == {"lion8bit": 3e-4, "optax.lion": 1e-3}


def test_weight_decay_is_set_apart_from_the_learning_rate():
    settings = read_settings({"optimizers": ["lion8bit"], "weight_decay": ["0"]})
    assert settings.weight_decays == {"lion8bit": 0.0}
    assert settings.learning_rates["lion8bit"] > 0


def test_sixteen_bits_have_defaults_of_their_own():
    settings = read_settings({"dtype": "bfloat16"})
    assert [row.name for row in settings.rows] == ["lion8bit"]


def test_each_rounding_is_compared_with_float32_parameters():
    settings = read_settings({"dtype": "bfloat16"})
    assert [(entry.name, entry.way) for entry in settings.entries] == [
        ("lion8bit, float32", Way("bfloat16")),
        ("lion8bit, bfloat16 nearest", Way("bfloat16", "nearest")),
        ("lion8bit, bfloat16 stochastic", Way("bfloat16", "stochastic")),
        ("lion8bit, bfloat16 compensated", Way("bfloat16", "compensated")),
    ]


def test_roundings_can_be_chosen_and_optaxs_optimizers_have_one():
    chosen = {"dtype": "float16", "optimizers": ["lamb8bit,optax.lamb"]}
    settings = read_settings(chosen | {"param_rounding": ["compensated, nearest"]})
    assert [entry.name for entry in settings.entries] == [
        "lamb8bit, float32", "lamb8bit, float16 compensated", "lamb8bit, float16 nearest",
        "optax.lamb, float32", "optax.lamb, float16 nearest",
    ]  # fmt: skip


def test_float32_parameters_leave_all_as_it_was():
    settings = read_settings({"dtype": "float32"})
    assert [(entry.name, entry.way) for entry in settings.entries] == [
        (row.name, None) for row in settings.rows
    ]
    assert not {"dtype", "param_rounding"} & set(settings.as_options())


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data": "digits", "steps": 7},
        {"prompt": 'a "quote"\n', "text": Path("/a book.txt"), "learning_rate": ("1e-5",)},
        {"dtype": "float16", "optimizers": ("lion8bit,adamw",), "param_rounding": ("nearest",)},
    ],
)
def test_settings_come_back_from_the_file_that_a_run_stores(tmp_path, given):
    settings = read_settings(given)
    folder = _runs.create(tmp_path / "run", settings)
    assert _runs.stored_settings(folder, TrainOptions()) == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "--steps 0.*1 or more"),
        ({"seed": -1}, "--seed -1"),
        ({"optimizers": ["sgd"]}, "Unknown optimizer 'sgd'"),
        ({"learning_rate": ["fast"]}, "--learning-rate fast.*--learning-rate 3e-4"),
        ({"learning_rate": ["-1e-3"]}, "0 or more"),
        ({"learning_rate": ["nan"]}, "0 or more"),
        ({"learning_rate": ["paged_lion=1e-3"]}, "names no optimizer of this run.*lion8bit"),
        ({"weight_decay": ["=1"]}, "names no optimizer"),
        ({"param_rounding": ["nearest"]}, "16 bits. Add `--dtype bfloat16`"),
        ({"dtype": "float32", "param_rounding": ["stochastic"]}, "16 bits. Add `--dtype bfloat16`"),
        ({"dtype": "bfloat16", "param_rounding": ["up"]}, "Choose from: nearest, stochastic, comp"),
        ({"dtype": "bfloat16", "param_rounding": [""]}, "Choose from: nearest, stochastic, comp"),
        ({"dtype": "bfloat16", "param_rounding": ["nearest,nearest"]}, "each named once"),
        (
            {"dtype": "bfloat16", "optimizers": ["optax.lion"], "param_rounding": ["stochastic"]},
            "optax.lion is Optax's, which knows no stochastic.*lion8bit",
        ),
        ({"data": "digits", "heads": 2}, "`--heads` needs `--data text`"),
        ({"data": "digits", "text": Path("x")}, "`--text` needs `--data text`"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_settings(given)
