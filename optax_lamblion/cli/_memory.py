"""`optax-lamblion memory`: the memory that training a model takes, without allocating anything."""

from __future__ import annotations

import os
from collections.abc import Sequence

from optax_lamblion.cli import _fitting, _footprint, _models
from optax_lamblion.cli import _memory_tables as tables
from optax_lamblion.cli._errors import CommandError, input_errors
from optax_lamblion.cli._footprint import Room, Setting
from optax_lamblion.cli._models import Model
from optax_lamblion.cli._options import MemoryOptions
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.cli._quantities import parse_bytes, parse_count, parse_fraction
from optax_lamblion.demo import configs, shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow, find_optimizers

# Without bits in their name they are 32-bit, so they would only repeat a row.
_SHOWN = [row for row in OPTIMIZERS.values() if not row.ours or row.name.endswith("bit")]
# Where JAX itself looks, the name that it prefers first.
_SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def run(options: MemoryOptions) -> int:
    """Prints the state of every optimizer, or its training step, for the model asked for."""
    _check(options)
    if options.list:
        return _list_models(options.json)
    model = _model(options)
    setting = _setting(model, options)
    room, source = _room(options, setting)
    rows = _optimizers(options.optimizer)
    states = {row.name: _footprint.state(row, setting) for row in rows}
    footprints = {row.name: _footprint.footprint(row, setting, states[row.name]) for row in rows}
    ways = []
    if room is not None and all(x.total_bytes > room.taken for x in footprints.values()):
        ways = _fitting.ways(rows, setting, room)
    if options.json:
        print_json(tables.as_json(model, setting, room, states, footprints, ways))
        return 0
    if not _asks_for_training(options):
        print_table(tables.state_table(model, setting, rows, states))
        if model.remarks:
            print(tables.remarks(model))
        return 0
    print_table(tables.training_table(model, setting, room, rows, footprints))
    if room is not None:
        print(tables.verdict(room, footprints), end="\n\n")
    if ways:
        print_table(tables.ways_table(ways))
    print(tables.notes(model, setting, room, source, ways, footprints))
    return 0


def _check(options: MemoryOptions) -> None:
    asked = {
        "--params": options.params is not None,
        "--model": options.model is not None,
        "--list": options.list,
    }
    if sum(asked.values()) != 1:
        given = " and ".join(name for name, yes in asked.items() if yes) or "none of them"
        raise CommandError(
            f"give one of --params, --model and --list; there is {given}. "
            "For example: --params 7e9, --model llama-8b, or --model path/to/config.json."
        )
    if options.param_rounding not in (None, "nearest"):
        if options.master:
            raise CommandError(
                "with `--master`, float32 parameters are stepped, and `--param-rounding` is for "
                "16-bit ones. Leave one of them out."
            )
        if options.dtype == "float32":
            raise CommandError(
                f"`--param-rounding {options.param_rounding}` is for 16-bit parameters. Add "
                "`--dtype bfloat16`."
            )


def _asks_for_training(options: MemoryOptions) -> bool:
    """Whether an option was given that only the table of a training step answers."""
    return (
        options.training
        or options.master
        or any(
            x is not None
            for x in (
                options.grad_dtype,
                options.devices,
                options.device_memory,
                options.memory_fraction,
                options.platform,
            )
        )
    )


def _room(options: MemoryOptions, setting: Setting) -> tuple[Room | None, str]:
    """What a device has and what JAX gives a program of it, and who says so."""
    size, fraction = options.device_memory, options.memory_fraction
    if fraction is not None and (size is None or setting.platform == "cpu"):
        raise CommandError(
            f"`--memory-fraction {fraction}` is a fraction of a GPU's memory. Add "
            "`--device-memory 24GiB`, or leave it out."
            if size is None
            else "`--memory-fraction` is for GPUs: on a CPU, JAX takes memory as it needs it. "
            "Leave it out."
        )
    if size is None:
        return None, ""
    nbytes = parse_bytes(size)
    if setting.platform == "cpu":
        return Room(size, nbytes, 1.0), ""
    if fraction is not None:
        return Room(size, nbytes, parse_fraction(fraction)), "`--memory-fraction`"
    for name in _SHARES:
        if value := os.environ.get(name):
            return Room(size, nbytes, parse_fraction(value, name)), f"{name} is set here"
    return Room(size, nbytes, 0.75), "its default"


def _model(options: MemoryOptions) -> Model:
    if options.params is not None:
        model = shapes.anonymous_model(parse_count(options.params))
        return Model("a model of large matrices", model)
    return _models.find(options.model or "")


def _setting(model: Model, options: MemoryOptions) -> Setting:
    if options.master and options.dtype == "float32":
        raise CommandError(
            "`--master` is a float32 copy, and the parameters are float32 already. Add "
            "`--dtype bfloat16`, or leave `--master` out."
        )
    devices = 1 if options.devices is None else options.devices
    if devices < 1:
        raise CommandError(f"`--devices {devices}` is too few. Use 1 or more.")
    return Setting(
        model=model.shapes,
        dtype=options.dtype,
        grad_dtype=options.grad_dtype,
        master=options.master,
        param_rounding=options.param_rounding or "nearest",
        devices=devices,
        platform=options.platform or "gpu",
    )


def _optimizers(names: Sequence[str]) -> list[OptimizerRow]:
    if not names:
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
    print(tables.filled(f"A config.json can have the model_type {', '.join(configs.SHAPES)}."))
    return 0
