"""Trains with parameters in float32 and in bfloat16, and keeps a record of the losses.

    python -m benchmarks.bfloat16             # a quarter of an hour on one core
    python -m benchmarks.bfloat16 --steps 4   # to try it: nothing is kept
    python -m benchmarks.bfloat16 --draw      # only the plot, of what is kept

What has been measured is in `optax-lamblion-runs/bfloat16` and not measured again, so that a
command that was interrupted goes on.
"""

from benchmarks import commands, records
from benchmarks.bfloat16 import report, training
from benchmarks.quality.kept import Kept

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def main(arguments=None):
    """Measures, keeps and draws."""
    parser = commands.parser("bfloat16", __doc__, draws=True)
    args = parser.parse_args(arguments)
    if args.draw:
        report.draw()
        return
    results = measure(Kept(None if args.steps else args.runs), steps=args.steps)
    if not args.steps:
        command = "python -m benchmarks.bfloat16"
        records.save("bfloat16", records.new(command, results, PACKAGES))
        report.draw()


def measure(kept, steps=None):
    """The runs by optimizer, and what they are of; the demo's number of steps, unless given."""
    given = {"steps": steps} if steps else {}
    about, optimizers = {}, {}
    for name in training.SHOWN:
        optimizers[name] = []
        for seed in range(training.SEEDS):
            for factor in training.FACTORS:
                found = kept(
                    f"{name} {seed} {factor:g}",
                    lambda name=name, factor=factor, seed=seed: training.train(
                        name, factor, seed, **given
                    ),
                )
                optimizers[name] += found["runs"]
                about = {key: found[key] for key in ("title", "parameters", "steps")}
    return {**about, "seeds": training.SEEDS, "optimizers": optimizers}


if __name__ == "__main__":
    main()
