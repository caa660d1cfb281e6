"""What would fit into a device where nothing does: the least that one has to change.

A change has levels, of which each costs more than the one before: another optimizer of the same
rule, its state in host memory, 16-bit parameters, 16-bit gradients, more of the device for JAX.
All combinations are computed, and those are ways out of which no part is one. More devices, a
larger one and a smaller model are ways out that leave the training as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from optax_lamblion.cli import _footprint
from optax_lamblion.cli._footprint import Footprint, Room, Setting, State
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow

MOST_WAYS = 4
# JAX takes its share of the device before CUDA and its libraries, which take some hundreds of MiB.
_FOR_CUDA = 2**30


@dataclasses.dataclass(frozen=True)
class Way:
    """Options under which an optimizer fits, and what a device then holds and has left."""

    optimizer: str
    options: tuple[str, ...]
    total_bytes: int
    left_bytes: int
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """What numbers a training is made of, and how far it is from what was asked."""

    options: tuple[str, ...]
    setting: Setting
    levels: tuple[int, int]  # of parameters and of gradients


def ways(rows: Sequence[OptimizerRow], setting: Setting, room: Room) -> list[Way]:
    """What would fit, what changes least first, where none of `rows` does."""
    search = _Search(setting, room)
    return [*search.by_change(rows), *search.by_size(rows)]


class _Search:
    def __init__(self, setting: Setting, room: Room):
        self._setting, self._room = setting, room
        self._states: dict[tuple[str, str, str], State] = {}

    def by_change(self, rows: Sequence[OptimizerRow]) -> list[Way]:
        """The least changes of a training that let it fit, at most `MOST_WAYS`."""
        found: dict[tuple[int, ...], Way] = {}
        for numbers, row in itertools.product(_numbers(self._setting), _candidates(rows)):
            if numbers.setting.param_rounding != "nearest" and not row.ours:
                continue  # Optax's would lose steps
            for share, more in self._shares():
                levels = (row not in rows, _is_paged(row), *numbers.levels, share)
                way = self._way(row, numbers, more)
                if way and (levels not in found or way.left_bytes > found[levels].left_bytes):
                    found[levels] = way
        least = [x for x in found if not any(_is_less(other, x) for other in found)]
        return [found[x] for x in sorted(least, key=lambda x: (sum(x), x))][:MOST_WAYS]

    def _shares(self) -> Iterator[tuple[int, float]]:
        """Of the device's memory, JAX's share as it is, and the most that it can have."""
        yield 0, self._room.fraction
        most = math.floor(100 * (1 - _FOR_CUDA / self._room.size)) / 100
        if self._setting.platform == "gpu" and most > self._room.fraction:
            yield 1, most

    def _way(self, row: OptimizerRow, numbers: _Numbers, most: float) -> Way | None:
        total = self._footprint(row, numbers.setting).total_bytes
        room, options = self._room, [f"--optimizer {row.name}", *numbers.options]
        if total > room.taken:
            share = math.ceil(100 * total / room.size) / 100
            if share > most:
                return None
            room = dataclasses.replace(room, fraction=share)
            options.append(f"--memory-fraction {share:g}")
        return Way(row.name, tuple(options), total, room.taken - total)

    def by_size(self, rows: Sequence[OptimizerRow]) -> Iterator[Way]:
        """More devices, a larger device and a smaller model, for the smallest of `rows`."""
        as_asked, *others = _numbers(self._setting)
        row = min(rows, key=lambda row: self._footprint(row, self._setting).total_bytes)
        many = self._on_more_devices(row, as_asked)
        # With 8-bit state and 16-bit numbers, but without giving up precision, it may be fewer.
        numbers = next((x for x in others if x.levels[0] == 1), as_asked)
        ours = [row for row in _candidates(rows) if row.ours]
        least = min(ours, key=lambda row: self._footprint(row, numbers.setting).total_bytes)
        few = self._on_more_devices(least, numbers)
        yield from many
        fewest = many[0].devices if many else math.inf
        yield from (way for way in few if self._setting.devices < way.devices < fewest)
        yield self._on_a_larger_device(row)
        yield from self._of_a_smaller_model(row)

    def _on_more_devices(self, row: OptimizerRow, numbers: _Numbers) -> list[Way]:
        found = self._footprint(row, numbers.setting)
        left = self._room.taken - found.step_bytes  # pages are as large on many devices
        if left <= 0:
            return []
        whole = self._setting.devices * (found.total_bytes - found.step_bytes)
        devices = max(math.ceil(whole / left), self._setting.devices)
        setting = dataclasses.replace(numbers.setting, devices=devices)
        total = self._footprint(row, setting).total_bytes
        options = (f"--optimizer {row.name}", *numbers.options, f"--devices {devices}")
        return [Way(row.name, options, total, self._room.taken - total, devices)]

    def _on_a_larger_device(self, row: OptimizerRow) -> Way:
        total = self._footprint(row, self._setting).total_bytes
        gib = math.ceil(10 * total / self._room.fraction / 2**30) / 10
        room = dataclasses.replace(self._room, size=round(gib * 2**30))
        options = (f"--optimizer {row.name}", f"--device-memory {gib:g}GiB")
        return Way(row.name, options, total, room.taken - total)

    def _of_a_smaller_model(self, row: OptimizerRow) -> Iterator[Way]:
        found = self._footprint(row, self._setting)
        count = self._setting.parameters
        count = math.floor(count * self._room.taken / found.total_bytes)
        for _ in range(20):  # what a step needs beside does not shrink as the model does
            if count < 10:
                return
            unit = 10 ** (len(str(count)) - 2)
            count = count // unit * unit
            model = shapes.anonymous_model(count)
            setting = dataclasses.replace(self._setting, model=model)
            state = _footprint.state(row, setting)
            total = _footprint.footprint(row, setting, state).total_bytes
            if total <= self._room.taken:
                options = (f"--optimizer {row.name}", f"--params {_short(count)}")
                yield Way(row.name, options, total, self._room.taken - total)
                return
            count -= 1

    def _footprint(self, row: OptimizerRow, setting: Setting) -> Footprint:
        key = row.name, setting.stepped_dtype, setting.param_rounding
        if key not in self._states:
            self._states[key] = _footprint.state(row, setting)
        return _footprint.footprint(row, setting, self._states[key])


def _candidates(rows: Sequence[OptimizerRow]) -> list[OptimizerRow]:
    """The optimizers that were asked for, and those with 8-bit state of the same rules."""
    rules = {row.family: None for row in rows}
    names = [f"{where}{family}8bit" for family in rules for where in ("", "paged_")]
    return [*rows, *(OPTIMIZERS[name] for name in names if OPTIMIZERS[name] not in rows)]


def _numbers(setting: Setting) -> Iterator[_Numbers]:
    """Parameters and gradients as asked, and with fewer bits."""
    parameters: list[tuple[tuple[str, ...], Setting, int]] = [((), setting, 0)]
    if setting.stepped_dtype == "float32":
        dtype = "bfloat16" if setting.dtype == "float32" else setting.dtype
        to_16_bits = "without --master" if setting.master else f"--dtype {dtype}"
        for level, rounding in enumerate(("compensated", "stochastic"), 1):
            narrow = dataclasses.replace(
                setting, dtype=dtype, master=False, param_rounding=rounding
            )
            parameters.append(((to_16_bits, f"--param-rounding {rounding}"), narrow, level))
    elif setting.param_rounding == "compensated":
        narrow = dataclasses.replace(setting, param_rounding="stochastic")
        parameters.append((("--param-rounding stochastic",), narrow, 1))
    for options, found, level in parameters:
        yield _Numbers(options, found, (level, 0))
        if found.gradient_dtype == "float32":
            narrow = dataclasses.replace(found, grad_dtype="bfloat16")
            yield _Numbers((*options, "--grad-dtype bfloat16"), narrow, (level, 1))


def _is_paged(row: OptimizerRow) -> bool:
    return row.name.startswith("paged_")


def _is_less(levels: tuple[int, ...], than: tuple[int, ...]) -> bool:
    return levels != than and all(x <= y for x, y in zip(levels, than, strict=True))


def _short(count: int) -> str:
    """A number of two digits as people write it: 5.1B."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:g}{letter}"
    return str(count)
