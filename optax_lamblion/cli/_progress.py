"""What a user sees while models train: bars on a terminal, lines of text elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from optax_lamblion.demo.compare import Observer, Run


@contextlib.contextmanager
def show_progress(names: Sequence[str], steps: int, *, quiet: bool) -> Iterator[Observer]:
    """Yields the observer that suits where the output goes."""
    console = Console()
    if quiet:
        yield Observer()
    elif not console.is_terminal:
        yield _Lines(steps)
    else:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=console) as progress:
            yield _Bars(progress, names, steps)


class _Bars(Observer):
    """One bar per optimizer."""

    def __init__(self, progress: Progress, names: Sequence[str], steps: int):
        self._progress = progress
        self._tasks = {
            name: progress.add_task(name, total=steps, status="", start=False) for name in names
        }

    def compiling(self, name: str) -> None:
        self._progress.update(self._tasks[name], status="compiling")

    def stepped(self, runs: Sequence[Run]) -> None:
        self._show(runs)

    def evaluated(self, runs: Sequence[Run]) -> None:
        self._show(runs)

    def _show(self, runs: Sequence[Run]) -> None:
        for run in runs:
            task = self._tasks[run.name]
            self._progress.start_task(task)  # the clock of all starts when all are compiled
            self._progress.update(task, completed=run.steps, status=_status(run))


class _Lines(Observer):
    """A line per measurement, for logs."""

    def __init__(self, steps: int):
        self._steps = steps
        self._start = time.monotonic()

    def compiling(self, name: str) -> None:
        print(f"{self._clock()}  compiling {name}", flush=True)

    def evaluated(self, runs: Sequence[Run]) -> None:
        losses = "  ".join(f"{run.name} {run.held_out[-1]['loss']:.3f}" for run in runs)
        if runs:
            step = f"{runs[0].steps:>{len(str(self._steps))}}/{self._steps}"
            print(f"{self._clock()}  step {step}  held-out loss: {losses}", flush=True)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{minutes}:{seconds:02d}"


def _status(run: Run) -> str:
    train = f"{run.train_losses[-1]:.3f}" if run.train_losses else "    -"
    held_out = f"{run.held_out[-1]['loss']:.3f}" if run.held_out else "    -"
    return f"train {train}  held-out {held_out}"
