"""`optax-lamblion bench`: the time of one optimizer step, against Optax's own, on this machine.

The short form of `python -m benchmarks.steps` in a clone, which knows more optimizers to compare.
"""

from __future__ import annotations

import os
import re

import jax

from optax_lamblion.cli._errors import CommandError
from optax_lamblion.cli._info import versions
from optax_lamblion.cli._options import BenchOptions
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.demo import contest, shapes, timing
from optax_lamblion.demo.architectures import Shapes
from optax_lamblion.demo.optimizers import did_you_mean
from optax_lamblion.demo.workloads import WORKLOADS

KNOWN = {**WORKLOADS, **shapes.MODELS}
"""What makes the shapes of a list or of a model, by the name that `--model` takes."""
_SHAPE = "4096x4096"


def run(options: BenchOptions) -> int:
    """Times every optimizer and prints the ratios."""
    leaves = _leaves(options)
    if options.repeats < 1:
        raise CommandError(f"`--repeats {options.repeats}` is too few. Use 1 or more.")
    _check_memory(leaves, options)
    arrays = contest.Arrays(leaves, options.dtype)
    results = []
    for family in contest.FAMILIES:
        entries = contest.of_family(family, arrays)
        times = timing.take_turns([entry.contestant for entry in entries], options.repeats)
        found = contest.findings(entries, times, arrays.elements)
        results += [{"name": x.name} | y for x, y in zip(entries, found, strict=True)]
    device = jax.devices()[0].device_kind
    if options.json:
        print_json(
            {
                "device": device,
                "model": options.model,
                "shape": None if options.model else next(iter(leaves.values())),
                "parameters": arrays.elements,
                "dtype": options.dtype,
                "repeats": options.repeats,
                "versions": versions(),
                "results": [{k: x for k, x in row.items() if k != "name"} for row in results],
            }
        )
        return 0
    print_table(_table(results, arrays, options, device))
    return 0


def _table(results, arrays, options, device):
    what = options.model or f"a {options.shape or _SHAPE} parameter"
    table = Table(
        f"One donated step on {what}, {options.dtype}, {device}, median of {options.repeats} turns",
        ["optimizer", "ms", "times", "of", "quartiles", "of a copy", "state B/param",
         "temporary B/param"],
        left=["of"],
    )  # fmt: skip
    for row in results:
        low, high = row["ratio_quartiles"]
        table.add(
            row["name"],
            f"{row['median_ms']:.2f}",
            f"{row['ratio']:.2f}",
            row["baseline"],
            f"{low:.2f}-{high:.2f}",
            f"{row['of_copy']:.1f}",
            f"{row['state_bytes_per_parameter']:.3f}",
            f"{row['temporary_bytes'] / arrays.elements:.2f}",
            dimmed=row["optimizer"] in (row["baseline"], contest.COPY),
        )
    return table


def _leaves(options: BenchOptions) -> Shapes:
    if options.model is None:
        return {"leaf": parse_shape(options.shape or _SHAPE)}
    if options.shape is not None:
        raise CommandError("`--shape` and `--model` exclude each other. Leave one out.")
    if options.model not in KNOWN:
        raise CommandError(
            f"Unknown model {options.model!r}. {did_you_mean(options.model, KNOWN)}"
            f"Choose from {', '.join(KNOWN)}."
        )
    return KNOWN[options.model]()


def parse_shape(given: str) -> tuple[int, ...]:
    """A shape written as `4096x4096`."""
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", given):
        raise CommandError(
            f"`--shape {given}` is not a shape. Join positive numbers with x, as in 4096x4096."
        )
    return tuple(map(int, given.split("x")))


def _check_memory(leaves, options):
    needed, there = contest.needed_bytes(leaves, options.dtype), _memory()
    if there and needed > 0.8 * there:
        raise CommandError(
            f"The optimizers need about {needed / 2**30:.0f} GiB for what they take turns on, and "
            f"this machine has {there / 2**30:.0f} GiB. Choose a smaller one: "
            f"{', '.join(WORKLOADS)}."
        )


def _memory():
    """Bytes of memory for arrays, or None where that is not said."""
    if limit := (jax.devices()[0].memory_stats() or {}).get("bytes_limit"):
        return limit
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # another system
        return None
