"""What the options of `train` mean: their defaults, their checks, and which exclude each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.demo.optimizers import OptimizerRow, find_optimizers
from optax_lamblion.demo.ways import HALVES, Entry, entries
from pallas_kernels.arithmetic.params import ROUNDINGS

DEFAULT_OPTIMIZERS = "optax.lion,lion8bit,optax.lamb,lamb8bit,optax.adamw,adamw8bit"
_DEFAULT_OF_HALVES = "lion8bit"  # it is trained four times
_BATCH_SIZES = {"text": 16, "digits": 64}
_STEPS = {"text": 300, "digits": 200}


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The options that only the text model has.

    `text` is the user's own file, if any. Without a `prompt`, samples start with `def ` for Python
    and with held-out text for the user's own.
    """

    text: Path | None = None
    prompt: str | None = None
    seq_len: int = 64
    width: int = 128
    layers: int = 2
    heads: int = 4


_TEXT_DEFAULTS = dataclasses.asdict(TextSettings())


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run. `text` is `None` if it learns something else."""

    data: str
    steps: int
    batch_size: int
    seed: int
    rows: tuple[OptimizerRow, ...]
    learning_rates: Mapping[str, float]
    weight_decays: Mapping[str, float]
    text: TextSettings | None = None
    dtype: str = "float32"
    param_rounding: tuple[str, ...] = ROUNDINGS

    @property
    def entries(self) -> list[Entry]:
        """What is compared, by the names that results carry."""
        return entries(self.rows, self.dtype, self.param_rounding)

    def as_options(self) -> dict[str, Any]:
        """The options of `train` that give these settings again, defaults included, as JSON."""
        found: dict[str, Any] = {
            "data": self.data,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        if self.text:
            found |= {name: x for name, x in dataclasses.asdict(self.text).items() if x is not None}
            if self.text.text:
                found["text"] = str(self.text.text.absolute())
        found["optimizers"] = [row.name for row in self.rows]
        for option, values in (
            ("learning_rate", self.learning_rates),
            ("weight_decay", self.weight_decays),
        ):
            found[option] = [f"{name}={value!r}" for name, value in values.items()]
        if self.dtype != "float32":
            found |= {"dtype": self.dtype, "param_rounding": list(self.param_rounding)}
        return found


def read_settings(options: TrainOptions) -> TrainSettings:
    """Checks the options that were given and fills in the others; raises `ValueError`."""
    given = {name: x for name, x in dataclasses.asdict(options).items() if x is not None}
    data = given.get("data", "text")
    text_options = {name: given[name] for name in _TEXT_DEFAULTS if name in given}
    if data != "text" and text_options:
        option = "--" + next(iter(text_options)).replace("_", "-")
        raise ValueError(f"`{option}` needs `--data text`. Remove it, or `--data {data}`.")
    steps = given.get("steps", _STEPS[data])
    if steps < 1:
        raise ValueError(f"`--steps {steps}` trains nothing. Use 1 or more.")
    seed = given.get("seed", 0)
    if not 0 <= seed < 2**32:
        raise ValueError(f"`--seed {seed}` is not a seed. Use a number from 0 to {2**32 - 1}.")
    dtype = given.get("dtype", "float32")
    default = DEFAULT_OPTIMIZERS if dtype == "float32" else _DEFAULT_OF_HALVES
    rows = find_optimizers(",".join(given.get("optimizers", (default,))))
    roundings = ROUNDINGS
    if "param_rounding" in given:
        roundings = _roundings(",".join(given["param_rounding"]), dtype, rows)
    return TrainSettings(
        data=data,
        steps=steps,
        batch_size=given.get("batch_size", _BATCH_SIZES[data]),
        seed=seed,
        rows=tuple(rows),
        learning_rates={row.name: row.learning_rate for row in rows}
        | _overrides("--learning-rate", given.get("learning_rate", ()), rows),
        weight_decays={row.name: row.weight_decay for row in rows}
        | _overrides("--weight-decay", given.get("weight_decay", ()), rows),
        text=TextSettings(**text_options) if data == "text" else None,
        dtype=dtype,
        param_rounding=roundings,
    )


def _roundings(given: str, dtype: str, rows: Sequence[OptimizerRow]) -> tuple[str, ...]:
    """Reads a list of roundings, for a dtype and optimizers that have them."""
    option = f"`--param-rounding {given}`"
    if dtype == "float32":
        raise ValueError(
            f"{option} is about parameters of 16 bits. Add `--dtype {HALVES[0]}`, or remove it."
        )
    names = tuple(filter(None, (part.strip() for part in given.split(","))))
    if not names or set(names) - set(ROUNDINGS) or len(set(names)) < len(names):
        raise ValueError(
            f"{option} is not a list of roundings, each named once. "
            f"Choose from: {', '.join(ROUNDINGS)}."
        )
    if unknown := [] if any(row.ours for row in rows) else [x for x in names if x != "nearest"]:
        raise ValueError(
            f"{option} is for optimizers of this library, and {rows[0].name} is Optax's, which "
            f"knows no {unknown[0]} rounding. Add one to `--optimizers`, such as "
            f"{_DEFAULT_OF_HALVES}, or use `--param-rounding nearest`."
        )
    return names


def _overrides(option: str, given: Sequence[str], rows: Sequence[OptimizerRow]) -> dict[str, float]:
    """Reads `X` (for all) and `NAME=X` (for one); what names an optimizer wins, whatever the order.

    `rows` are the optimizers that take part; another name would be ignored, so it is an error.
    """
    names = [row.name for row in rows]
    for_all: dict[str, float] = {}
    for_one: dict[str, float] = {}
    for part in ",".join(given).split(",") if given else ():
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        if equals and name not in names:
            raise ValueError(
                f"`{option} {part}` names no optimizer of this run. It compares {', '.join(names)}."
            )
        value = _number(option, part, number)
        if equals:
            for_one[name] = value
        else:
            for_all |= dict.fromkeys(names, value)
    return for_all | for_one


def _number(option: str, part: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"`{option} {part}` has no number in it that is 0 or more. "
            f"Write `{option} 3e-4`, or `{option} lion8bit=3e-4` for one optimizer."
        )
    return value
