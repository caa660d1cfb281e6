"""How `optax-lamblion memory` puts its answers: tables, notes below them, and JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from optax_lamblion import StateReport
from optax_lamblion.cli import _footprint
from optax_lamblion.cli._footprint import Footprint, Room, Setting
from optax_lamblion.cli._output import Table, columns
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow

_REFERENCE = "optax.adamw"
_NOTE = (
    "Parameters, gradients and state are computed from shapes. The step is an estimate of what "
    "`apply_fused` (for Optax's optimizers `update` and `apply_updates`) allocates beside them on "
    "a {platform}, with parameters and state donated. Activations are not included: they are gone "
    "when an optimizer steps, and need room before that."
)
_DIVIDED = (
    "Everything is divided evenly. What cannot be divided, such as norms, is whole on each device "
    "and adds to that."
)
_PREALLOCATED = (
    "JAX takes {percent:g} % of the memory here. XLA_PYTHON_CLIENT_MEM_FRACTION sets that where it "
    "runs, and `--memory-fraction` here."
)


def as_json(
    name: str,
    setting: Setting,
    room: Room | None,
    reports: Mapping[str, StateReport],
    footprints: Mapping[str, Footprint],
) -> dict:
    """Everything, in bytes. What is not `per_device` is of the whole state, however divided."""
    return {
        "model": name,
        "dtype": setting.dtype,
        "parameters": setting.parameters,
        "grad_dtype": setting.grad_dtype,
        "master": setting.master,
        "devices": setting.devices,
        "platform": setting.platform,
        "device_memory_bytes": None if room is None else room.size,
        "memory_fraction": None if room is None else room.fraction,
        "optimizers": [
            {
                "name": key,
                "state_bytes": reports[key].nbytes,
                "bytes_per_parameter": reports[key].bytes_per_parameter,
                "device_bytes": reports[key].by_memory_kind["device"],
                "per_device": {
                    "parameter_bytes": found.parameter_bytes,
                    "master_bytes": found.master_bytes,
                    "gradient_bytes": found.gradient_bytes,
                    "device_state_bytes": found.state_bytes,
                    "estimated_step_bytes": found.step_bytes,
                    "total_device_bytes": found.total_bytes,
                    "host_state_bytes": found.host_state_bytes,
                },
                "fits": None if room is None else found.total_bytes <= room.taken,
            }
            for key, found in footprints.items()
        ],
    }


def state_table(
    name: str, setting: Setting, rows: Sequence[OptimizerRow], reports: Mapping[str, StateReport]
) -> Table:
    """What the states weigh."""
    reference = reports.get(_REFERENCE) or _footprint.report(OPTIMIZERS[_REFERENCE], setting)
    table = Table(
        f"Optimizer state for {name}: {setting.parameters:,} {setting.dtype} parameters",
        ["optimizer", "bytes", "bytes/param", "GiB", "device GiB", "host GiB", "% of AdamW"],
    )
    for row in rows:
        report = reports[row.name]
        on_device = report.by_memory_kind["device"]
        table.add(
            row.name,
            f"{report.nbytes:,}",
            f"{report.bytes_per_parameter:.3f}",
            _gib(report.nbytes),
            _gib(on_device),
            _gib(report.nbytes - on_device),
            f"{100 * report.nbytes / reference.nbytes:.0f}",
            dimmed=not row.ours,
        )
    return table


def training_table(
    name: str,
    setting: Setting,
    room: Room | None,
    rows: Sequence[OptimizerRow],
    footprints: Mapping[str, Footprint],
) -> Table:
    """What a device holds at a step; with `room`, what is left of that."""
    platform = setting.platform.upper()
    where = f"a {platform}" if setting.devices == 1 else f"each of {setting.devices:,} {platform}s"
    copy = " and a float32 copy" if setting.master else ""
    # Short, so that the table fits in 100 columns.
    names = ["param GiB", "grad GiB", "state GiB", "step GiB", "total GiB", "host GiB"]
    table = Table(
        f"Memory of {where} for training {name}:\n{setting.parameters:,} {setting.dtype} parameters"
        f"{copy}, {setting.grad_dtype} gradients",
        ["optimizer", *names, *([] if room is None else ["left GiB"])],
    )
    for row in rows:
        found = footprints[row.name]
        cells = [
            found.parameter_bytes + found.master_bytes,
            found.gradient_bytes,
            found.state_bytes,
            found.step_bytes,
            found.total_bytes,
            found.host_state_bytes,
        ]
        if room is not None:
            cells.append(room.taken - found.total_bytes)
        table.add(row.name, *map(_gib, cells), dimmed=not row.ours)
    return table


def verdict(room: Room, setting: Setting, footprints: Mapping[str, Footprint]) -> str:
    """Which optimizers fit; if none does, what would make the smallest one fit."""
    fit = [name for name, found in footprints.items() if found.total_bytes <= room.taken]
    rest = [name for name in footprints if name not in fit]
    of = "" if room.fraction == 1 else f" of {room.asked}"
    taken = room.asked if room.fraction == 1 else f"{_gib(room.taken)} GiB"
    lines = [f"Fits in {taken}{of}, without activations: {', '.join(fit) or 'none'}."]
    lines += [f"Does not fit: {', '.join(rest)}."] if rest else []
    if not fit:
        name = min(footprints, key=lambda name: footprints[name].total_bytes)
        lines.append(_remedy(name, footprints[name], room, setting))
    return "\n".join(textwrap.fill(line, columns()) for line in lines) + "\n"


def _remedy(name: str, found: Footprint, room: Room, setting: Setting) -> str:
    """What would make it fit."""
    ways, needs = [], found.total_bytes
    fraction = math.ceil(100 * needs / room.size) / 100
    if fraction <= _MOST_OF_A_DEVICE:
        ways.append(f"`--memory-fraction {fraction:g}`")
    size = math.ceil(100 * needs / room.fraction / 2**30) / 100
    ways.append(f"a device of {size:g}GiB")
    if (left := room.taken - found.step_bytes) > 0:  # pages are as large on many devices
        whole = setting.devices * (needs - found.step_bytes)
        ways.append(f"`--devices {math.ceil(whole / left)}`")
    if setting.dtype == "float32":
        ways.append("`--dtype bfloat16`, which about halves parameters and gradients")
    return f"The smallest, {name}, needs {_gib(needs)} GiB. To make room: {', or '.join(ways)}."


_MOST_OF_A_DEVICE = 0.95  # the rest is for CUDA and its libraries


def notes(setting: Setting, room: Room | None) -> str:
    """What the numbers of a training step are, and are not."""
    notes = [_NOTE.format(platform=setting.platform.upper())]
    if setting.devices > 1:
        notes.append(_DIVIDED)
    if room is not None and setting.platform == "gpu":
        notes.append(_PREALLOCATED.format(percent=100 * room.fraction))
    return textwrap.fill(" ".join(notes), columns())


def _gib(nbytes: int) -> str:
    size = nbytes / 2**30
    return f"{size:,.2f}" if abs(size) < 1000 else f"{size:,.0f}"
