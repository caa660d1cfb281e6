"""`optax-lamblion memory`: what optimizers would weigh in memory, without allocating anything."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence

from optax_lamblion.cli import _footprint
from optax_lamblion.cli import _memory_tables as tables
from optax_lamblion.cli._errors import CommandError, input_errors
from optax_lamblion.cli._footprint import Room, Setting
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.cli._quantities import parse_bytes, parse_count, parse_fraction
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow, find_optimizers

# Without bits in their name they are 32-bit, so they would only repeat a row.
_SHOWN = [row for row in OPTIMIZERS.values() if not row.ours or row.name.endswith("bit")]
_DTYPES = ["float32", "bfloat16", "float16"]
# Of these any one asks for the table of a training step.
_TRAINING = ("grad_dtype", "master", "devices", "device_memory", "memory_fraction", "platform")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `memory`."""
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--params", metavar="N", default=_NONE, help="number of parameters: 7e9, 7B or 124_439_808"
    )
    size.add_argument(
        "--model", metavar="NAME", default=_NONE, help=f"one of {', '.join(shapes.MODELS)}"
    )
    size.add_argument("--list", action="store_true", help="print the models and their parameters")
    parser.add_argument(
        "--optimizer",
        metavar="NAME",
        action="append",
        default=_NONE,
        help="show this one only; may be given more than once",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="dtype of the parameters"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_training(
        parser.add_argument_group(
            "training", "What a device holds when an optimizer steps; any of these asks for it."
        )
    )


def _add_training(group) -> None:
    """Declares the options of a training step."""

    def add(name: str, summary: str, **kwargs):
        group.add_argument(name, help=summary, default=_NONE, **kwargs)

    group.add_argument("--training", action="store_true", help="show that")
    add(
        "--grad-dtype",
        "dtype of the gradients; that of the parameters by default",
        choices=_DTYPES,
    )
    add(
        "--master",
        "step a float32 copy of the parameters, and keep those in `--dtype` as well",
        action="store_true",
    )
    add("--devices", "divide everything over N devices", type=int, metavar="N")
    add("--device-memory", "say whether it fits into a device of so much: 24GiB", metavar="SIZE")
    add(
        "--memory-fraction",
        "how much of that JAX takes, as XLA_PYTHON_CLIENT_MEM_FRACTION says; 0.75 of a GPU by "
        "default, and all of a CPU's",
        metavar="X",
    )
    add(
        "--platform",
        "whose compiler to estimate the step's own memory for; gpu by default",
        choices=["gpu", "cpu"],
    )


_NONE = argparse.SUPPRESS  # or help would show None for a default


def run(args: argparse.Namespace) -> int:
    """Prints the state of every optimizer, or its training step, for the model asked for."""
    given = vars(args)
    if args.list:
        return _list_models(args.json)
    name, model = _model(given)
    setting = _setting(model, given)
    room = _room(given, setting)
    rows = _optimizers(given.get("optimizer"))
    reports = {row.name: _footprint.report(row, setting) for row in rows}
    footprints = {row.name: _footprint.footprint(row, setting, reports[row.name]) for row in rows}
    if args.json:
        print_json(tables.as_json(name, setting, room, reports, footprints))
    elif args.training or any(option in given for option in _TRAINING):
        print_table(tables.training_table(name, setting, room, rows, footprints))
        if room is not None:
            print(tables.verdict(room, setting, footprints))
        print(tables.notes(setting, room))
    else:
        print_table(tables.state_table(name, setting, rows, reports))
    return 0


def _room(given: Mapping, setting: Setting) -> Room | None:
    """What a device has, and what JAX takes of it."""
    fraction = given.get("memory_fraction")
    if "device_memory" not in given:
        if fraction is not None:
            raise CommandError(
                f"`--memory-fraction {fraction}` is of the device's memory. Add "
                "`--device-memory 24GiB`, or leave it out."
            )
        return None
    usual = 0.75 if setting.platform == "gpu" else 1.0
    return Room(
        given["device_memory"],
        parse_bytes(given["device_memory"]),
        usual if fraction is None else parse_fraction(fraction),
    )


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
