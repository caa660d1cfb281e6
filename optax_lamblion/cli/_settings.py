"""The options of `train`: their defaults, their checks, and which do not go together."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow, find_optimizers
from optax_lamblion.demo.ways import HALVES, Entry, entries
from pallas_kernels.arithmetic.params import ROUNDINGS

DEFAULT_OPTIMIZERS = "optax.lion,lion8bit,optax.lamb,lamb8bit"
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
    output: Path
    quiet: bool
    resume: bool = False
    text: TextSettings | None = None
    dtype: str = "float32"
    param_rounding: tuple[str, ...] = ROUNDINGS

    @property
    def entries(self) -> list[Entry]:
        """What is compared, by the names that results carry."""
        return entries(self.rows, self.dtype, self.param_rounding)

    def as_json(self) -> dict[str, Any]:
        """The settings that decide the numbers, for the record."""
        record = dataclasses.asdict(self)
        for name in ("rows", "quiet", "output", "resume"):
            del record[name]
        if self.dtype == "float32":
            del record["dtype"], record["param_rounding"]
        if self.text:
            record["text"] |= {"text": self.text.text and str(self.text.text)}
        return record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options. One that is not given is absent, so that it shows who gave what."""

    def add(name: str, summary: str, default: str | None = None, **kwargs):
        shown = f" (default: {default})" if default else ""
        parser.add_argument(name, help=summary + shown, default=argparse.SUPPRESS, **kwargs)

    def add_text_only(name: str, summary: str, **kwargs):
        default = _TEXT_DEFAULTS[name.removeprefix("--").replace("-", "_")]
        add(name, f"{summary}; text only", default and repr(default), **kwargs)

    add("--data", "what to learn", "text", choices=list(_BATCH_SIZES))
    add("--steps", "training steps of each optimizer", "300; digits: 200", type=int, metavar="N")
    add("--batch-size", "examples in a step", "16; digits: 64", type=int, metavar="N")
    add("--seed", "decides the initial parameters and the batches", "0", type=int, metavar="N")
    add_text_only(
        "--text", "learn this file, not Python's standard library", type=Path, metavar="FILE"
    )
    add_text_only(
        "--prompt",
        "what samples of generated text start with, if not `def ` or held-out text of the FILE",
        metavar="TEXT",
    )
    add_text_only("--seq-len", "bytes of context", type=int, metavar="N")
    add_text_only("--width", "features of the transformer", type=int, metavar="N")
    add_text_only("--layers", "blocks of the transformer", type=int, metavar="N")
    add_text_only("--heads", "attention heads", type=int, metavar="N")
    add(
        "--optimizers",
        f"optimizers to compare, from {', '.join(OPTIMIZERS)}",
        f"{DEFAULT_OPTIMIZERS}; with 16 bits: {_DEFAULT_OF_HALVES}",
        metavar="A,B,...",
    )
    add(
        "--dtype",
        "with one of 16 bits, every optimizer is trained with float32 parameters and with those of "
        "this dtype, and nothing else differs",
        "float32",
        choices=["float32", *HALVES],
    )
    add(
        "--param-rounding",
        "how parameters of 16 bits are written, each in a training of its own; Optax's optimizers "
        "round to nearest only",
        ",".join(ROUNDINGS),
        metavar="A,B,...",
    )
    for name, example in (("learning-rate", "3e-4"), ("weight-decay", "0.1")):
        add(
            f"--{name}",
            f"{name.replace('-', ' ')} of all optimizers, or of one as in `lion8bit={example}`; "
            "join several with commas",
            "tuned for each family",
            action="append",
            metavar="[NAME=]X",
        )
    add(
        "--output",
        "folder for results",
        "optax-lamblion-runs/DATA; with 16 bits: DATA-DTYPE",
        type=Path,
        metavar="DIR",
    )
    add("--resume", "go on with a run that was stopped in that folder", action="store_true")
    add("--quiet", "print the final table only", action="store_true")


def read_settings(given: Mapping[str, Any]) -> TrainSettings:
    """Checks the options that were given and fills in the others; raises `ValueError`."""
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
    rows = find_optimizers(given.get("optimizers", default))
    roundings = ROUNDINGS
    if "param_rounding" in given:
        roundings = _roundings(given["param_rounding"], dtype, rows)
    folder = data if dtype == "float32" else f"{data}-{dtype}"
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
        output=given.get("output", Path("optax-lamblion-runs") / folder),
        quiet=given.get("quiet", False),
        resume=given.get("resume", False),
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
