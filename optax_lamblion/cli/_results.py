"""What a training run leaves behind: a table, a plot, a JSON file and samples of text."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from optax_lamblion.cli import _runs
from optax_lamblion.cli._info import versions
from optax_lamblion.cli._output import Table, to_json
from optax_lamblion.cli._settings import TrainSettings
from optax_lamblion.demo.checkpoint import replacing
from optax_lamblion.demo.compare import Run
from optax_lamblion.demo.plot import comparison_figure
from optax_lamblion.demo.task import Task
from optax_lamblion.demo.themes import save_in_themes

_METRICS = {
    "loss": ("held-out loss", "{:.3f}"),
    "bits_per_byte": ("bits/byte", "{:.3f}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "loss_16bit": ("in 16 bits", "{:.3f}"),
}

Samples = Mapping[str, tuple[str, str]]


def results_table(task: Task, runs: Sequence[Run]) -> Table:
    """One row per optimizer, and one for a predictor that ignores its input.

    Where runs differ in how they keep their parameters, there is one more loss, of the same
    parameters in 16 bits, and the bytes are those of parameters and state.
    """
    metrics = list(runs[0].held_out[-1])
    kept = runs[0].way is not None
    sizes = ["parameter bytes"] * kept + ["state bytes", "bytes/param"]
    table = Table(
        f"{task.title}, {task.parameter_count:,} parameters, {runs[0].steps} steps",
        ["optimizer", *(_METRICS[m][0] for m in metrics), *sizes, "ms/step"],
    )
    for run in runs:
        table.add(
            run.name,
            *_formatted(metrics, run.held_out[-1]),
            *[f"{run.parameter_bytes:,}"] * kept,
            f"{run.state_bytes:,}",
            f"{run.total_bytes_per_parameter if kept else run.bytes_per_parameter:.3f}",
            f"{run.median_step_ms:.1f}",
        )
    baseline = _formatted(metrics, task.baseline)
    table.add(f"({task.baseline_name})", *baseline, *"-" * len(sizes), "-", dimmed=True)
    return table


def sample_text(name: str, sample: tuple[str, str]) -> str:
    """A sample of generated text, set apart under the name of its optimizer."""
    return f"\nText by {name}:\n\n{textwrap.indent(''.join(sample), '    | ', lambda line: True)}"


def write_results(
    folder: Path,
    task: Task,
    runs: Sequence[Run],
    settings: TrainSettings,
    samples: Samples,
    *,
    seconds: float,
    interrupted: bool,
) -> None:
    """Writes the plot in two themes, and then `results.json`, which says how the run ended."""
    record = _record(task, runs, settings, samples)
    record |= {"seconds": round(seconds, 1), "interrupted": interrupted}
    save_in_themes(lambda: comparison_figure(record), folder / _runs.PLOT, dpi=150)
    with replacing(folder / _runs.RESULTS) as file:
        file.write(f"{to_json(record)}\n".encode())


def _formatted(metrics: Sequence[str], values: Mapping[str, float]) -> list[str]:
    return [_METRICS[name][1].format(values[name]) if name in values else "-" for name in metrics]


def _record(
    task: Task, runs: Sequence[Run], settings: TrainSettings, samples: Samples
) -> dict[str, Any]:
    entries = {entry.name: entry for entry in settings.entries}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings.as_options(),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "task": task.title,
        "parameters": task.parameter_count,
        "baseline": {"name": task.baseline_name, **task.baseline},
        "optimizers": [
            {
                "name": run.name,
                **_kept(run),
                "learning_rate": settings.learning_rates[entries[run.name].row.name],
                "weight_decay": settings.weight_decays[entries[run.name].row.name],
                "steps": run.steps,
                "held_out": dict(run.held_out[-1]),
                "state_bytes": run.state_bytes,
                "bytes_per_parameter": run.bytes_per_parameter,
                "median_step_ms": run.median_step_ms,
                "sample": "".join(samples[run.name]) if run.name in samples else None,
                "curves": {
                    "train_loss": run.train_losses,
                    "step_ms": run.step_ms,
                    "held_out_steps": run.held_out_steps,
                    "held_out": [dict(values) for values in run.held_out],
                },
            }
            for run in runs
        ],
    }


def _kept(run: Run) -> dict[str, Any]:
    """How a run keeps its parameters, if that is what is compared."""
    if run.way is None:
        return {}
    return {
        "dtype": run.way.dtype,
        "param_rounding": run.way.rounding,
        "parameter_bytes": run.parameter_bytes,
    }
