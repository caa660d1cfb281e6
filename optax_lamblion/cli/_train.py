"""`optax-lamblion train`: trains one model with several optimizers and shows how they compare."""

from __future__ import annotations

import sys
import time

import optax

from optax_lamblion.cli._errors import input_errors, require
from optax_lamblion.cli._interrupt import interruptible
from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.cli._output import print_table
from optax_lamblion.cli._settings import TrainSettings, read_settings
from optax_lamblion.demo.task import Task

_NEEDED = {"flax": "flax", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def run(options: TrainOptions) -> int:
    """Trains, then prints a table and writes a plot and a JSON file."""
    require(_NEEDED)
    # It imports the extra.
    from optax_lamblion.cli import _results as results

    with input_errors():
        settings = read_settings(options)
        task = make_task(settings)
    folder = results.make_folder(settings)
    say = (lambda *_, **__: None) if settings.quiet else print
    say(f"{task.title}; {task.parameter_count:,} parameters; {settings.steps} steps")

    start = time.monotonic()
    runs = _trained(task, settings)
    if not (runs and runs[0].steps):
        print("Stopped before the first step, so there is nothing to write.", file=sys.stderr)
        return 130
    interrupted = runs[0].steps < settings.steps
    samples = {}
    if task.sample and not interrupted:
        samples = {run.name: task.sample(run.weights) for run in runs}
    seconds = time.monotonic() - start

    say(*(results.sample_text(*item) for item in samples.items()), "", sep="\n")
    print_table(results.results_table(task, runs))
    say(f"{'Stopped early' if interrupted else 'Done'} after {seconds:.0f} s.")
    results.write_results(task, runs, settings, samples, seconds=seconds, interrupted=interrupted)
    say(f"Plot: {folder / 'comparison.png'}")
    say(f"Numbers and samples: {folder / 'results.json'}")
    if interrupted:
        say("The same command with `--resume` goes on.")
    return 130 if interrupted else 0


def _trained(task: Task, settings: TrainSettings):
    """The runs of all optimizers, kept in the output folder until they are done."""
    from optax_lamblion.cli._progress import show_progress
    from optax_lamblion.demo import checkpoint
    from optax_lamblion.demo.compare import compare

    chains = make_optimizers(settings)

    def restore(runs):
        if settings.resume:
            checkpoint.restore(settings.output, runs)

    with (
        interruptible() as should_stop,
        show_progress(list(chains), settings.steps, quiet=settings.quiet) as observer,
    ):
        runs = compare(
            task,
            chains,
            steps=settings.steps,
            observer=observer,
            should_stop=should_stop,
            restore=restore,
            keep=lambda runs: checkpoint.save(settings.output, settings.as_json(), runs),
            ways={entry.name: entry.way for entry in settings.entries},
        )
    if runs and runs[0].steps == settings.steps:
        (settings.output / checkpoint.NAME).unlink(missing_ok=True)
    return runs


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
