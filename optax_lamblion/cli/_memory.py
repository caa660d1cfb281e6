"""`optax-lamblion memory`: what optimizers would weigh in memory, without allocating anything."""

from __future__ import annotations

from collections.abc import Sequence

from optax_lamblion.cli import _footprint
from optax_lamblion.cli import _memory_tables as tables
from optax_lamblion.cli._errors import CommandError, input_errors
from optax_lamblion.cli._footprint import Room, Setting
from optax_lamblion.cli._options import MemoryOptions
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.cli._quantities import parse_bytes, parse_count, parse_fraction
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow, did_you_mean, find_optimizers

# Without bits in their name they are 32-bit, so they would only repeat a row.
_SHOWN = [row for row in OPTIMIZERS.values() if not row.ours or row.name.endswith("bit")]


def run(options: MemoryOptions) -> int:
    """Prints the state of every optimizer, or its training step, for the model asked for."""
    _check(options)
    if options.list:
        return _list_models(options.json)
    name, model = _model(options)
    setting = _setting(model, options)
    room = _room(options, setting)
    rows = _optimizers(options.optimizer)
    reports = {row.name: _footprint.report(row, setting) for row in rows}
    footprints = {row.name: _footprint.footprint(row, setting, reports[row.name]) for row in rows}
    if options.json:
        print_json(tables.as_json(name, setting, room, reports, footprints))
    elif _asks_for_training(options):
        print_table(tables.training_table(name, setting, room, rows, footprints))
        if room is not None:
            print(tables.verdict(room, setting, footprints))
        print(tables.notes(setting, room))
    else:
        print_table(tables.state_table(name, setting, rows, reports))
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
            "For example: --params 7e9, or --model llama-8b."
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


def _room(options: MemoryOptions, setting: Setting) -> Room | None:
    """What a device has, and what JAX takes of it."""
    size, fraction = options.device_memory, options.memory_fraction
    if size is None:
        if fraction is not None:
            raise CommandError(
                f"`--memory-fraction {fraction}` is of the device's memory. Add "
                "`--device-memory 24GiB`, or leave it out."
            )
        return None
    usual = 0.75 if setting.platform == "gpu" else 1.0
    return Room(size, parse_bytes(size), usual if fraction is None else parse_fraction(fraction))


def _model(options: MemoryOptions) -> tuple[str, shapes.Shapes]:
    if options.params is not None:
        return "a model of large matrices", shapes.anonymous_model(parse_count(options.params))
    name = options.model or ""
    if name not in shapes.MODELS:
        raise CommandError(
            f"Unknown model {name!r}. {did_you_mean(name, shapes.MODELS)}"
            f"Choose from {', '.join(shapes.MODELS)}, "
            "or give a number of parameters with `--params`."
        )
    return name, shapes.MODELS[name]()


def _setting(model: shapes.Shapes, options: MemoryOptions) -> Setting:
    if options.master and options.dtype == "float32":
        raise CommandError(
            "`--master` is a float32 copy, and the parameters are float32 already. Add "
            "`--dtype bfloat16`, or leave `--master` out."
        )
    devices = 1 if options.devices is None else options.devices
    if devices < 1:
        raise CommandError(f"`--devices {devices}` is too few. Use 1 or more.")
    return Setting(
        model=model,
        dtype=options.dtype,
        grad_dtype=options.grad_dtype or options.dtype,
        master=options.master,
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
    return 0
