"""Trains with every optimizer, batch size and learning rate, and keeps the record `batches`.

    python -m benchmarks.batches                    # 12 minutes on one core
    python -m benchmarks.batches --examples 2048    # to try it: nothing is kept

What has been measured is in `optax-lamblion-runs/batches` and not measured again.
"""

import argparse
import pathlib

from benchmarks import records
from benchmarks.batches import report, sweep
from benchmarks.quality.kept import Kept

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")


def main(arguments=None):
    """Measures, keeps and draws."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=int, help="so many, and nothing is kept: to try it")
    parser.add_argument("--runs", type=pathlib.Path, default="optax-lamblion-runs/batches")
    parser.add_argument("--draw", action="store_true", help="only the plot, of what is kept")
    args = parser.parse_args(arguments)
    if args.draw:
        report.draw()
        return
    results = measure(args.examples, Kept(None if args.examples else args.runs))
    if not args.examples:
        records.save("batches", records.new("python -m benchmarks.batches", results, PACKAGES))
        report.draw()


def measure(examples, kept):
    """The losses of all trainings."""
    results = {}
    for name in sweep.TASKS:
        task, count = sweep.task(name), examples or sweep.EXAMPLES[name]
        results[name] = {
            "title": task.title,
            "parameters": task.parameters,
            "examples": count,
            "seeds": sweep.SEEDS[name],
            "sizes": sweep.batch_sizes(task),
            "rates": {optimizer: sweep.rates(optimizer) for optimizer in sweep.MAKERS},
            "losses": {
                optimizer: [
                    kept(
                        f"{name} {optimizer} {size}",
                        lambda x=optimizer, size=size, task=task, n=count: sweep.sweep(
                            task, x, size, n
                        ),
                    )
                    for size in sweep.batch_sizes(task)
                ]
                for optimizer in sweep.MAKERS
            },
        }
    return results


if __name__ == "__main__":
    main()
