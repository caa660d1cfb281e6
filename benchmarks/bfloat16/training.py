"""The trainings of `./dev train --dtype bfloat16`: all ways to keep parameters, side by side."""

from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.cli._settings import read_settings
from optax_lamblion.cli._train import make_optimizers, make_task
from optax_lamblion.demo.compare import compare
from optax_lamblion.demo.optimizers import OPTIMIZERS

SHOWN = ("lion8bit", "adamw8bit", "lamb8bit")
SEEDS = 3
FACTORS = (1.0, 0.1)
"""Of the optimizer's learning rate in the demo."""


def train(name, factor, seed, **given):
    """What is kept of the trainings of an optimizer from one start: a run for each way."""
    rate = factor * OPTIMIZERS[name].learning_rate
    settings = read_settings(
        TrainOptions(
            dtype="bfloat16",
            optimizers=(name,),
            learning_rate=(f"{rate:g}",),
            seed=seed,
            **given,
        )
    )
    task = make_task(settings)
    ways = {entry.name: entry.way for entry in settings.entries}
    runs = compare(task, make_optimizers(settings), steps=settings.steps, ways=ways)
    return {
        "title": task.title,
        "parameters": task.parameter_count,
        "steps": settings.steps,
        "runs": [
            {
                "learning_rate": float(f"{rate:g}"),
                "seed": seed,
                "way": ways[run.name].name,
                "bytes": round(run.total_bytes_per_parameter, 3),
                "steps": run.held_out_steps,
                "loss": [round(values["loss"], 5) for values in run.held_out],
                "loss_16bit": round(run.held_out[-1]["loss_16bit"], 5),
            }
            for run in runs
        ],
    }
