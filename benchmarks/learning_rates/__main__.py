"""Trains with every optimizer over a range of learning rates, and keeps a record of the losses.

    python -m benchmarks.learning_rates             # about three minutes on one core
    python -m benchmarks.learning_rates --steps 4   # to try it: nothing is kept

What has been measured is in `optax-lamblion-runs/learning-rates` and not measured again, so that a
command that was interrupted goes on.
"""

from benchmarks import commands, records
from benchmarks.learning_rates import training
from benchmarks.quality.kept import Kept

BITS = (32, 8)
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def main(arguments=None):
    """Measures and keeps."""
    parser = commands.parser("learning_rates", __doc__)
    args = parser.parse_args(arguments)
    results = measure(args.steps or training.STEPS, Kept(None if args.steps else args.runs))
    if not args.steps:
        command = "python -m benchmarks.learning_rates"
        records.save("learning-rates", records.new(command, results, PACKAGES))


def measure(steps, kept):
    """The losses by optimizer and learning rate, and what they are of."""
    task = training.language_model()
    return {
        "title": task.title,
        "parameters": task.parameter_count,
        "steps": steps,
        "losses": {
            f"{family}{bits}bit": _losses(task, family, bits, steps, kept)
            for family in training.RATES
            for bits in BITS
        },
    }


def _losses(task, family, bits, steps, kept):
    trained = training.Training(task, training.make(family, bits), steps)
    return {
        f"{rate:g}": kept(
            f"{family}{bits}bit {rate:g}", lambda rate=rate: round(trained.loss(rate), 4)
        )
        for rate in training.RATES[family]
    }


if __name__ == "__main__":
    main()
