from pathlib import Path

import pytest

from optax_lamblion.cli._settings import read_settings


def test_defaults_compare_both_families_with_optax():
    settings = read_settings({})
    assert [row.name for row in settings.rows] == [
        "optax.lion", "lion8bit", "optax.lamb", "lamb8bit",
    ]  # fmt: skip
    assert settings.learning_rates["lion8bit"] == settings.learning_rates["optax.lion"]
    assert settings.output == Path("optax-lamblion-runs/text")


def test_digits_have_defaults_of_their_own():
    settings = read_settings({"data": "digits"})
    assert (settings.batch_size, settings.text) == (64, None)
    assert settings.output == Path("optax-lamblion-runs/digits")


@pytest.mark.parametrize(
    "given", [["1e-3", "lion8bit=3e-4"], ["lion8bit=3e-4,1e-3"], ["lion8bit = 3e-4", " 1e-3"]]
)
def test_a_named_learning_rate_wins_over_the_general_one(given):
    settings = read_settings({"optimizers": "lion8bit,optax.lion", "learning_rate": given})
    assert settings.learning_rates == {"lion8bit": 3e-4, "optax.lion": 1e-3}


def test_weight_decay_is_set_apart_from_the_learning_rate():
    settings = read_settings({"optimizers": "lion8bit", "weight_decay": ["0"]})
    assert settings.weight_decays == {"lion8bit": 0.0}
    assert settings.learning_rates["lion8bit"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "--steps 0.*1 or more"),
        ({"seed": -1}, "--seed -1"),
        ({"optimizers": "sgd"}, "Unknown optimizer 'sgd'"),
        ({"learning_rate": ["fast"]}, "--learning-rate fast.*--learning-rate 3e-4"),
        ({"learning_rate": ["-1e-3"]}, "0 or more"),
        ({"learning_rate": ["nan"]}, "0 or more"),
        ({"learning_rate": ["optax.adamw=1e-3"]}, "names no optimizer of this run.*lion8bit"),
        ({"weight_decay": ["=1"]}, "names no optimizer"),
        ({"data": "digits", "heads": 2}, "`--heads` needs `--data text`"),
        ({"data": "digits", "text": Path("x")}, "`--text` needs `--data text`"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_settings(given)
