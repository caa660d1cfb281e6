"""`optax-lamblion bench`: the time of one optimizer step, against Optax's own, on this machine.

Absolute times differ from machine to machine and from minute to minute, so what counts is a ratio
of two optimizers that took turns in one process.
"""

from __future__ import annotations

import re
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_lamblion.cli._errors import CommandError
from optax_lamblion.cli._info import versions
from optax_lamblion.cli._options import BenchOptions
from optax_lamblion.cli._output import Table, print_json, print_table
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow

_GROUPS = (
    ("optax.lion", "lion32bit", "lion8bit"),
    ("optax.lamb", "lamb32bit", "lamb8bit"),
    ("optax.adamw", "adamw32bit", "adamw8bit"),
)
_WARM_UP = 3


def run(options: BenchOptions) -> int:
    """Times every optimizer and prints the ratios."""
    shape = parse_shape(options.shape)
    if options.repeats < 1:
        raise CommandError(f"`--repeats {options.repeats}` is too few. Use 1 or more.")
    results = [
        result
        for group in _GROUPS
        for result in bench_group([OPTIMIZERS[name] for name in group], shape, options)
    ]
    device = jax.devices()[0].device_kind
    if options.json:
        print_json(
            {
                "device": device,
                "shape": shape,
                "dtype": options.dtype,
                "repeats": options.repeats,
                "versions": versions(),
                "results": results,
            }
        )
        return 0
    table = Table(
        f"One donated step on a {options.shape} {options.dtype} parameter, {device}, "
        f"median of {options.repeats}",
        ["optimizer", "ms", "times", "of", "state bytes/param", "temporary bytes"],
        left=["of"],
    )
    for result in results:
        reference = result["optimizer"] == result["baseline"]
        table.add(
            result["optimizer"],
            f"{result['median_ms']:.2f}",
            f"{result['ratio']:.2f}",
            result["baseline"],
            f"{result['state_bytes_per_parameter']:.3f}",
            f"{result['temporary_bytes']:,}",
            dimmed=reference,
        )
    print_table(table)
    return 0


def parse_shape(given: str) -> tuple[int, ...]:
    """A shape written as `4096x4096`."""
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", given):
        raise CommandError(
            f"`--shape {given}` is not a shape. Join positive numbers with x, as in 4096x4096."
        )
    return tuple(map(int, given.split("x")))


def bench_group(
    rows: list[OptimizerRow], shape: tuple[int, ...], options: BenchOptions
) -> list[dict]:
    """Times the optimizers of one family in turns; the first is the one they are compared to."""
    gradient = 1e-2 * jax.random.normal(jax.random.key(0), shape, options.dtype)
    contestants = [_Contestant(row, gradient) for row in rows]
    for _ in range(_WARM_UP):
        for contestant in contestants:
            contestant.step()
    times = [[contestant.step() for contestant in contestants] for _ in range(options.repeats)]
    return [
        {
            "optimizer": contestant.row.name,
            "baseline": rows[0].name,
            "median_ms": statistics.median(turn[i] for turn in times),
            # Within one turn the machine hardly changes, so this is steadier than the ratio of
            # the medians where other programs run.
            "ratio": statistics.median(turn[i] / turn[0] for turn in times),
            "state_bytes_per_parameter": contestant.state_bytes / gradient.size,
            "temporary_bytes": contestant.temporary_bytes,
        }
        for i, contestant in enumerate(contestants)
    ]


class _Contestant:
    """An optimizer with its own parameter and state, which every step updates in place."""

    def __init__(self, row: OptimizerRow, gradient: jax.Array):
        tx = row.factory(row.learning_rate, weight_decay=row.weight_decay)

        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        self.row = row
        self.gradient = gradient
        self.params: Any = jnp.ones_like(gradient)
        self.state = jax.jit(tx.init)(self.params)
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, gradient)
        self._step = lowered.compile()
        analysis = self._step.memory_analysis()
        self.temporary_bytes = int(analysis.temp_size_in_bytes) if analysis else 0

    def step(self) -> float:
        """Takes a step and returns its time in milliseconds."""
        start = time.perf_counter()
        self.params, self.state = self._step(self.params, self.state, self.gradient)
        jax.block_until_ready((self.params, self.state))
        return 1e3 * (time.perf_counter() - start)
