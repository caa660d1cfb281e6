"""`optax-lamblion train`: trains one model with several optimizers and shows how they compare."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from optax_lamblion.cli._errors import CommandError, input_errors, require
from optax_lamblion.cli._info import versions
from optax_lamblion.cli._interrupt import interruptible
from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.cli._output import print_table
from optax_lamblion.cli._settings import TrainSettings, read_settings
from optax_lamblion.demo import checkpoint
from optax_lamblion.demo.compare import Run
from optax_lamblion.demo.task import Task

_NEEDED = {"flax": "flax", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def run(options: TrainOptions) -> int:
    """Trains, then prints a table and writes plots and a JSON file."""
    require(_NEEDED)
    # They import the extra.
    from optax_lamblion.cli import _results, _runs

    if options.resume is None:
        with input_errors():
            settings = read_settings(options)
            task = make_task(settings)
            folder = _runs.create(options.output, settings)
    else:
        folder = _runs.find(options)
        settings = _runs.stored_settings(folder, options)
        if _runs.is_finished(folder):
            (folder / checkpoint.NAME).unlink(missing_ok=True)
            print(f"The run in {folder} is finished: it has taken its {settings.steps} steps.")
            return 0
        with input_errors():
            task = make_task(settings)
    with _runs.locked(folder):
        return _train(task, settings, folder, options.quiet, _results)


def _train(task: Task, settings: TrainSettings, folder: Path, quiet: bool, results) -> int:
    say = (lambda *_, **__: None) if quiet else print
    say(f"{task.title}; {task.parameter_count:,} parameters; {settings.steps} steps")
    say(f"Run: {folder}")

    start = time.monotonic()
    runs = _trained(task, settings, folder, quiet)
    if not (runs and runs[0].steps):
        print(
            f"Stopped before the first step. `--resume {folder}` starts it again.", file=sys.stderr
        )
        return 130
    interrupted = runs[0].steps < settings.steps
    samples = {}
    if task.sample and not interrupted:
        samples = {run.name: task.sample(run.weights) for run in runs}
    seconds = time.monotonic() - start

    say(*(results.sample_text(*item) for item in samples.items()), "", sep="\n")
    print_table(results.results_table(task, runs))
    say(f"{'Stopped early' if interrupted else 'Done'} after {seconds:.0f} s.")
    results.write_results(
        folder, task, runs, settings, samples, seconds=seconds, interrupted=interrupted
    )
    say(f"Plots, numbers and samples are in {folder}.")
    if interrupted:
        say(f"Continue with: optax-lamblion train --resume {folder}")
        return 130
    (folder / checkpoint.NAME).unlink(missing_ok=True)  # not before the results are there
    return 0


def _trained(task: Task, settings: TrainSettings, folder: Path, quiet: bool):
    """The runs of all optimizers, saved in the folder as they go."""
    from optax_lamblion.cli._progress import show_progress
    from optax_lamblion.demo.compare import compare

    chains = make_optimizers(settings)
    origin = _origin(task, settings)
    with (
        interruptible() as should_stop,
        show_progress(list(chains), settings.steps, quiet=quiet) as observer,
    ):
        return compare(
            task,
            chains,
            steps=settings.steps,
            observer=observer,
            should_stop=should_stop,
            restore=lambda runs: _restore(folder, origin, runs),
            keep=lambda runs: checkpoint.save(folder, origin, runs),
            ways={entry.name: entry.way for entry in settings.entries},
        )


def _origin(task: Task, settings: TrainSettings) -> dict[str, Any]:
    """What the numbers of a run depend on besides its settings."""
    arrays = jax.tree.leaves((task.params, task.batch(0), task.batch(settings.steps - 1)))
    data = 0
    for array in arrays:
        data = zlib.crc32(np.asarray(array).tobytes(), data)
    used = versions()
    return {"data": data} | {name: used[name] for name in ("jax", "jaxlib", "optax", "numpy")}


def _restore(folder: Path, origin: dict[str, Any], runs: Sequence[Run]) -> None:
    """Puts the runs where a checkpoint has them, if there is one."""
    path = folder / checkpoint.NAME
    if not path.exists():
        return
    try:
        before = checkpoint.about(folder)
        if before["data"] == origin["data"]:
            checkpoint.restore(folder, runs)
    except Exception as error:  # damage surfaces as nearly any kind
        raise CommandError(
            f"{str(path)!r} is damaged: {error}. Remove it, and `--resume` starts from step 0."
        ) from error
    if before["data"] != origin["data"]:
        raise CommandError(
            f"the run in {str(folder)!r} was started with other data: its text has changed, or "
            "Python's standard library has. It cannot continue; start a run without `--resume`."
        )
    if changed := [name for name, version in origin.items() if before[name] != version]:
        what = ", ".join(f"{name} {before[name]} is now {origin[name]}" for name in changed)
        print(
            f"Note: {what}. From here on, the numbers may differ in their last digits.",
            file=sys.stderr,
        )


def make_optimizers(settings: TrainSettings) -> dict[str, optax.GradientTransformation]:
    """What the settings compare, by the names that results carry."""
    return {
        entry.name: entry.optimizer(
            steps=settings.steps,
            learning_rate=settings.learning_rates[entry.row.name],
            weight_decay=settings.weight_decays[entry.row.name],
        )
        for entry in settings.entries
    }


def make_task(settings: TrainSettings) -> Task:
    """The learning problem that the settings describe; raises `ValueError` if there is none."""
    options = settings.text
    if options is None:
        from optax_lamblion.demo.digits import digits_task

        return digits_task(batch_size=settings.batch_size, seed=settings.seed)
    from optax_lamblion.demo import text
    from optax_lamblion.demo.language import text_task
    from optax_lamblion.demo.transformer import TransformerConfig

    config = TransformerConfig(
        width=options.width,
        layers=options.layers,
        heads=options.heads,
        seq_len=options.seq_len,
    )
    if options.text:
        corpus, usual_prompt = text.text_file(options.text), None
    else:
        corpus, usual_prompt = text.python_sources(), "def "
    return text_task(
        corpus,
        config,
        batch_size=settings.batch_size,
        seed=settings.seed,
        prompt=usual_prompt if options.prompt is None else options.prompt,
    )
