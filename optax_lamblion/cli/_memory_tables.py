"""How `optax-lamblion memory` puts its answers: tables, notes below them, and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from optax_lamblion import StateReport
from optax_lamblion.cli import _footprint
from optax_lamblion.cli._footprint import Footprint, Setting
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
    "JAX takes 75 % of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says another part."
)


def as_json(
    name: str,
    setting: Setting,
    room: int | None,
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
        "device_memory_bytes": room,
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
                "fits": None if room is None else found.total_bytes <= room,
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
    room: int | None,
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
            cells.append(room - found.total_bytes)
        table.add(row.name, *map(_gib, cells), dimmed=not row.ours)
    return table


def verdict(asked: str, room: int, footprints: Mapping[str, Footprint]) -> str:
    """Which optimizers fit in `room`, which was `asked` for in those words."""
    fit = [name for name, found in footprints.items() if found.total_bytes <= room]
    rest = [name for name in footprints if name not in fit]
    lines = [f"Fits in {asked}, without activations: {', '.join(fit) or 'none'}."]
    lines += [f"Does not fit: {', '.join(rest)}."] if rest else []
    return "\n".join(textwrap.fill(line, columns()) for line in lines) + "\n"


def notes(setting: Setting, room: int | None) -> str:
    """What the numbers of a training step are, and are not."""
    notes = [_NOTE.format(platform=setting.platform.upper())]
    if setting.devices > 1:
        notes.append(_DIVIDED)
    if room is not None and setting.platform == "gpu":
        notes.append(_PREALLOCATED)
    return textwrap.fill(" ".join(notes), columns())


def _gib(nbytes: int) -> str:
    size = nbytes / 2**30
    return f"{size:,.2f}" if abs(size) < 1000 else f"{size:,.0f}"
