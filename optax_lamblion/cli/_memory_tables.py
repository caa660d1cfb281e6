"""How `optax-lamblion memory` puts its answers: tables, notes below them, and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from optax_lamblion.cli import _footprint
from optax_lamblion.cli._fitting import Way
from optax_lamblion.cli._footprint import Footprint, Room, Setting, State
from optax_lamblion.cli._models import Model
from optax_lamblion.cli._output import Table, columns, printable
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow

_REFERENCE = "optax.adamw"
_NOT_COUNTED = (
    "Not counted: activations, which need memory during the forward and backward pass, and "
    "whatever else your program keeps on the device. Leave room for them."
)
_ESTIMATED = (
    'Parameters, gradients and state follow from shapes. "step" is an estimate of the temporary '
    "memory of the optimizer's step on a {platform}: `apply_fused` for the optimizers of this "
    "library, `update` and `apply_updates` for Optax's, with parameters and state donated."
)
_SHARDED = (
    "Everything is sharded evenly. What cannot be sharded, such as norms, adds a little on each "
    "device."
)
_SHARE = (
    "JAX gives a program {percent:g} % of a GPU's memory ({source}). To change that, set "
    "XLA_CLIENT_MEM_FRACTION where your program runs, and `--memory-fraction` here. CUDA and its "
    "libraries need some hundreds of MiB of the rest."
)
_ROUNDING = "Optax's optimizers only round 16-bit parameters to nearest, and are shown so."
_NEW_SHARE = (
    "`--memory-fraction X` stands for XLA_CLIENT_MEM_FRACTION=X in the environment of your program."
)
_PAGED = "Paged optimizers of the other families need about as much of the device as the one named."


def as_json(
    model: Model,
    setting: Setting,
    room: Room | None,
    states: Mapping[str, State],
    footprints: Mapping[str, Footprint],
    ways: Sequence[Way],
) -> dict:
    """Everything, in bytes. What is not `per_device` is of the whole state, however sharded."""
    return {
        "model": model.name,
        "remarks": list(model.remarks),
        "dtype": setting.dtype,
        "parameters": setting.parameters,
        "grad_dtype": setting.gradient_dtype,
        "master": setting.master,
        "param_rounding": setting.param_rounding,
        "devices": setting.devices,
        "platform": setting.platform,
        "device_memory_bytes": None if room is None else room.size,
        "memory_fraction": None if room is None else room.fraction,
        "optimizers": [
            {
                "name": key,
                "state_bytes": states[key].nbytes,
                "bytes_per_parameter": states[key].nbytes / setting.parameters,
                "device_bytes": states[key].device_bytes,
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
        "what_would_fit": [
            {
                "optimizer": way.optimizer,
                "options": list(way.options),
                "total_device_bytes": way.total_bytes,
                "left_bytes": way.left_bytes,
            }
            for way in ways
        ],
    }


def state_table(
    model: Model, setting: Setting, rows: Sequence[OptimizerRow], states: Mapping[str, State]
) -> Table:
    """What the states weigh."""
    reference = states.get(_REFERENCE) or _footprint.state(OPTIMIZERS[_REFERENCE], setting)
    title = (
        f"Optimizer state for {model.name}, in GiB, in bytes per parameter, and as a share of "
        f"{_REFERENCE}'s",
        f"{setting.parameters:,} {setting.dtype} parameters{_rounded(setting)}",
    )
    names = ["optimizer", "B/param", "state", "device", "host", "% AdamW"]
    table = Table(_lines(*title), names)
    for row in rows:
        state = states[row.name]
        table.add(
            row.name,
            f"{state.nbytes / setting.parameters:.3f}",
            *map(_gib, (state.nbytes, state.device_bytes, state.host_bytes)),
            f"{100 * state.nbytes / reference.nbytes:.0f}",
            dimmed=not row.ours,
        )
    return table


def training_table(
    model: Model,
    setting: Setting,
    room: Room | None,
    rows: Sequence[OptimizerRow],
    footprints: Mapping[str, Footprint],
) -> Table:
    """What a device holds at a step; with `room`, what is left of that."""
    first = next(iter(footprints.values()))
    platform = setting.platform.upper()
    where = f"a {platform}" if setting.devices == 1 else f"each of {setting.devices:,} {platform}s"
    title = [
        f"Memory of {where} at an optimizer step for {model.name}, in GiB",
        f"{_gib(first.parameter_bytes)} for {setting.parameters:,} {setting.dtype} parameters"
        f"{_rounded(setting)}",
    ]
    if setting.master:
        title.append(f"{_gib(first.master_bytes)} for their float32 copy")
    title.append(f"{_gib(first.gradient_bytes)} for {setting.gradient_dtype} gradients")
    if room is not None:
        title.append(f"{_gib(room.taken)} for a program, of {room.asked}")
    names = ["optimizer", "state", "step", "total", *([] if room is None else ["left"]), "host"]
    table = Table(_lines(*title), names)
    for row in rows:
        found = footprints[row.name]
        cells = [found.state_bytes, found.step_bytes, found.total_bytes]
        if room is not None:
            cells.append(room.taken - found.total_bytes)
        cells.append(found.host_state_bytes)
        table.add(row.name, *map(_gib, cells), dimmed=not row.ours)
    return table


def verdict(room: Room, footprints: Mapping[str, Footprint]) -> str:
    """Which optimizers fit."""
    fit = [name for name, found in footprints.items() if found.total_bytes <= room.taken]
    into = f"into {_gib(room.taken)} GiB"
    if not fit:
        return filled(f"None of them fits {into}, even without activations.")
    return filled(
        f"{len(fit)} of {len(footprints)} fit {into} without activations: {', '.join(fit)}."
    )


def ways_table(ways: Sequence[Way]) -> Table:
    """What would fit."""
    title = "What would fit, with these options added or changed (total and left in GiB)"
    table = Table(_lines(title), ["optimizer", "total", "left", "options"], left=("options",))
    for way in ways:
        options = " ".join(x for x in way.options if not x.startswith("--optimizer"))
        table.add(
            way.optimizer, _gib(way.total_bytes), _gib(way.left_bytes), options or "as they are"
        )
    return table


def notes(
    model: Model,
    setting: Setting,
    room: Room | None,
    source: str,
    ways: Sequence[Way],
    names: Iterable[str],
) -> str:
    """What the numbers of a training step are, and are not."""
    notes = [*model.remarks]
    if any("--memory-fraction" in option for way in ways for option in way.options):
        notes.append(_NEW_SHARE)
    families = {OPTIMIZERS[name].family for name in names}
    if len(families) > 1 and any(way.optimizer.startswith("paged_") for way in ways):
        notes.append(_PAGED)
    notes += [_NOT_COUNTED, _ESTIMATED.format(platform=setting.platform.upper())]
    if setting.param_rounding != "nearest":
        notes.append(_ROUNDING)
    if setting.devices > 1:
        notes.append(_SHARDED)
    if room is not None and setting.platform == "gpu":
        notes.append(_SHARE.format(percent=round(100 * room.fraction, 2), source=source))
    return "\n".join(map(filled, notes))


def remarks(model: Model) -> str:
    """What is to be said of the model alone."""
    return "\n".join(map(filled, model.remarks))


def _rounded(setting: Setting) -> str:
    is_nearest = setting.param_rounding == "nearest"
    return "" if is_nearest else f", {setting.param_rounding} rounding"


def _lines(*title: str) -> str:
    return "\n".join(filled(line) for line in title)


def filled(text: str) -> str:
    """Lines that are good to read."""
    return textwrap.fill(printable(text), min(columns(), _WIDTH))


_WIDTH = 80


def _gib(nbytes: int) -> str:
    size = nbytes / 2**30
    return f"{size:,.2f}" if abs(size) < 1000 else f"{size:,.0f}"
