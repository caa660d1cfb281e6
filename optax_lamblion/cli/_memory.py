"""`optax-lamblion memory`: what optimizers would weigh in memory, without allocating anything."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence

from optax_lamblion.cli import _footprint
from optax_lamblion.cli import _memory_tables as tables
from optax_lamblion.cli._errors import CommandError, input_errors
from optax_lamblion.cli._footprint import Setting
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.cli._quantities import parse_bytes, parse_count
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow, find_optimizers

# Without bits in their name they are 32-bit, so they would only repeat a row.
_SHOWN = [row for row in OPTIMIZERS.values() if not row.ours or row.name.endswith("bit")]
_DTYPES = ["float32", "bfloat16", "float16"]
# Of these any one asks for the table of a training step.
_TRAINING = ("grad_dtype", "master", "devices", "device_memory", "platform")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `memory`."""
    none = argparse.SUPPRESS  # or help would show None for a default
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--params", metavar="N", default=none, help="number of parameters: 7e9, 7B or 124_439_808"
    )
    size.add_argument(
        "--model", metavar="NAME", default=none, help=f"one of {', '.join(shapes.MODELS)}"
    )
    size.add_argument("--list", action="store_true", help="print the models and their parameters")
    parser.add_argument(
        "--optimizer",
        metavar="NAME",
        action="append",
        default=none,
        help="show this one only; may be given more than once",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="dtype of the parameters"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    training = parser.add_argument_group(
        "training", "What a device holds when an optimizer steps; any of these asks for it."
    )
    training.add_argument("--training", action="store_true", help="show that")
    training.add_argument(
        "--grad-dtype",
        choices=_DTYPES,
        default=none,
        help="dtype of the gradients; that of the parameters by default",
    )
    training.add_argument(
        "--master",
        action="store_true",
        default=none,
        help="step a float32 copy of the parameters, and keep those in `--dtype` as well",
    )
    training.add_argument(
        "--devices", type=int, metavar="N", default=none, help="divide everything over N devices"
    )
    training.add_argument(
        "--device-memory",
        metavar="SIZE",
        default=none,
        help="say whether it fits into so much: 24GiB or 80GB",
    )
    training.add_argument(
        "--platform",
        choices=["gpu", "cpu"],
        default=none,
        help="whose compiler to estimate the step's own memory for; gpu by default",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the state of every optimizer, or its training step, for the model asked for."""
    given = vars(args)
    if args.list:
        return _list_models(args.json)
    name, model = _model(given)
    setting = _setting(model, given)
    room = parse_bytes(args.device_memory) if "device_memory" in given else None
    rows = _optimizers(given.get("optimizer"))
    reports = {row.name: _footprint.report(row, setting) for row in rows}
    footprints = {row.name: _footprint.footprint(row, setting, reports[row.name]) for row in rows}
    if args.json:
        print_json(tables.as_json(name, setting, room, reports, footprints))
    elif args.training or any(option in given for option in _TRAINING):
        print_table(tables.training_table(name, setting, room, rows, footprints))
        if room is not None:
            print(tables.verdict(args.device_memory, room, footprints))
        print(tables.notes(setting, room))
    else:
        print_table(tables.state_table(name, setting, rows, reports))
    return 0


def _model(given: Mapping) -> tuple[str, shapes.Shapes]:
    if "params" in given:
        return "a model of large matrices", shapes.anonymous_model(parse_count(given["params"]))
    name = given["model"]
    if name not in shapes.MODELS:
        near = difflib.get_close_matches(name.lower(), shapes.MODELS, cutoff=0.5)
        raise CommandError(
            f"Unknown model {name!r}. {f'Did you mean {" or ".join(near)}? ' if near else ''}"
            f"Choose from {', '.join(shapes.MODELS)}, "
            "or give a number of parameters with `--params`."
        )
    return name, shapes.MODELS[name]()


def _setting(model: shapes.Shapes, given: Mapping) -> Setting:
    dtype, devices = given["dtype"], given.get("devices", 1)
    if "master" in given and dtype == "float32":
        raise CommandError(
            "`--master` is a float32 copy, and the parameters are float32 already. Add "
            "`--dtype bfloat16`, or leave `--master` out."
        )
    if devices < 1:
        raise CommandError(f"`--devices {devices}` is too few. Use 1 or more.")
    return Setting(
        model=model,
        dtype=dtype,
        grad_dtype=given.get("grad_dtype", dtype),
        master=given.get("master", False),
        devices=devices,
        platform=given.get("platform", "gpu"),
    )


def _optimizers(names: Sequence[str] | None) -> list[OptimizerRow]:
    if names is None:
        return _SHOWN
    with input_errors():
        return find_optimizers(",".join(names))


def _list_models(as_json: bool) -> int:
    models = {name: make() for name, make in shapes.MODELS.items()}
    if as_json:
        print_json(
            [
                {"name": name, "parameters": shapes.count(model), "tensors": len(model)}
                for name, model in models.items()
            ]
        )
        return 0
    table = Table("Models for --model", ["model", "parameters", "tensors"])
    for name, model in models.items():
        table.add(name, f"{shapes.count(model):,}", f"{len(model):,}")
    print_table(table)
    return 0
