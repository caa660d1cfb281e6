"""The trainings of `./dev train`, whose losses README and `docs/accuracy.md` show."""

from benchmarks.quality.tasks import SEEDS
from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.cli._settings import read_settings
from optax_lamblion.cli._train import make_optimizers, make_task
from optax_lamblion.demo.compare import compare

OPTIMIZERS = ("optax.lion", "lion8bit", "optax.lamb", "lamb8bit", "optax.adamw", "adamw8bit")


def train(seed, **given):
    """What is kept of a training of all optimizers, from one start and on the same batches."""
    settings = read_settings(TrainOptions(optimizers=OPTIMIZERS, seed=seed, **given))
    task = make_task(settings)
    runs = compare(task, make_optimizers(settings), steps=settings.steps, evaluations=1)
    return {
        "title": task.title,
        "parameters": task.parameter_count,
        "steps": settings.steps,
        "baseline": round(task.baseline["loss"], 5),
        "losses": {run.name: round(run.held_out[-1]["loss"], 5) for run in runs},
        "bytes": {run.name: round(run.bytes_per_parameter, 4) for run in runs},
    }


def measure(kept):
    """The trainings of all seeds."""
    return {"runs": [kept(f"demo {seed}", lambda seed=seed: train(seed)) for seed in range(SEEDS)]}
