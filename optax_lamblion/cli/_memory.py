"""`optax-lamblion memory`: what the optimizers' states would weigh, without allocating them."""

from __future__ import annotations

import argparse
import math
import re

import jax

from optax_lamblion import StateReport, state_report
from optax_lamblion.cli._errors import CommandError
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow

# These are 32-bit unless asked otherwise, so they would only repeat a row.
_REPEATED = ("lion", "lamb", "paged_lion", "paged_lamb")
_SHOWN = [row for row in OPTIMIZERS.values() if row.name not in _REPEATED]
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `memory`."""
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--params", metavar="N", help="number of parameters: 7e9, 7B or 124_439_808")
    size.add_argument("--model", metavar="NAME", help=f"one of {', '.join(shapes.MODELS)}")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="dtype of the parameters",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the state of every optimizer for the model that was asked for."""
    name, model = _model(args)
    structs = shapes.as_structs(model, args.dtype)
    parameters = sum(math.prod(shape) for shape in model.values())
    reports = {row.name: _report(row, structs) for row in _SHOWN}
    sizes = {name: report.nbytes for name, report in reports.items()}
    on_device = {name: report.by_memory_kind["device"] for name, report in reports.items()}
    if args.json:
        print_json(
            {
                "model": name,
                "dtype": args.dtype,
                "parameters": parameters,
                "optimizers": [
                    {
                        "name": key,
                        "state_bytes": size,
                        "bytes_per_parameter": size / parameters,
                        "device_bytes": on_device[key],
                    }
                    for key, size in sizes.items()
                ],
            }
        )
        return 0
    table = Table(
        f"Optimizer state for {name}: {parameters:,} {args.dtype} parameters",
        ["optimizer", "bytes", "bytes/param", "GiB", "on the device", "of AdamW"],
    )
    for row in _SHOWN:
        size = sizes[row.name]
        table.add(
            row.name,
            f"{size:,}",
            f"{size / parameters:.3f}",
            f"{size / 2**30:,.2f}",
            f"{on_device[row.name] / 2**30:,.2f}",
            f"{size / sizes['optax.adamw']:.0%}",
            dimmed=not row.ours,
        )
    print_table(table)
    return 0


def parse_count(given: str) -> int:
    """A number of parameters, as people write it: `7e9`, `7B`, `124_439_808`."""
    match = re.fullmatch(r"([0-9._]+(?:e\+?[0-9]+)?)([kmbt]?)", given.strip().lower())
    try:
        value = float(match[1]) * _SUFFIXES[match[2]] if match else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    # Above 2**53 a float skips integers, and no model is there yet.
    if not (1 <= value <= 2**53 and value == round(value)):
        raise CommandError(
            f"`--params {given}` is not a number of parameters. "
            "Give a whole number of at least 1, such as `--params 7e9` or `--params 124M`."
        )
    return round(value)


def _model(args: argparse.Namespace) -> tuple[str, dict[str, shapes.Shape]]:
    if args.params is not None:
        return "a model of large matrices", shapes.anonymous_model(parse_count(args.params))
    if args.model not in shapes.MODELS:
        raise CommandError(
            f"Unknown model {args.model!r}. Choose from {', '.join(shapes.MODELS)}, "
            "or give a number of parameters with `--params`."
        )
    return args.model, shapes.MODELS[args.model]()


def _report(row: OptimizerRow, structs: dict[str, jax.ShapeDtypeStruct]) -> StateReport:
    """What the real `init` returns for parameters of these shapes."""
    tx = row.factory(row.learning_rate, weight_decay=row.weight_decay)
    return state_report(jax.eval_shape(tx.init, structs))
