"""Trains with every optimizer and batch size, at its best learning rate, and keeps a record of it.

    python -m benchmarks.batches                    # half an hour on one core
    python -m benchmarks.batches digits             # or: text
    python -m benchmarks.batches --examples 2048    # to try it: nothing is kept

What has been measured is in `optax-lamblion-runs/batches` and not measured again.
"""

from benchmarks import commands, records
from benchmarks.batches import report, sweep
from benchmarks.batches.search import search
from benchmarks.quality.kept import Kept

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")


def main(arguments=None):
    """Measures, keeps and draws."""
    parser = commands.parser("batches", __doc__, less="--examples", draws=True)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    args = parser.parse_args(arguments)
    if args.draw:
        report.draw()
        return
    for name in args.tasks or sweep.TASKS:
        results = measure(name, args.examples, Kept(None if args.examples else args.runs))
        if not args.examples:
            command = f"python -m benchmarks.batches {name}"
            records.save(f"batches-{name}", records.new(command, results, PACKAGES))
    if not args.examples:
        report.draw()


def measure(name, examples, kept):
    """The losses of all trainings on a task."""
    task, count = sweep.task(name), examples or sweep.EXAMPLES[name]
    sizes = sweep.batch_sizes(task)

    def cell(optimizer, size):
        losses = sweep.trainings(task, optimizer, size, count)
        return search(
            sweep.usual_rate(optimizer),
            lambda rate: kept(f"{name} {optimizer} {size} {rate}", lambda: losses(rate)),
        )

    return {
        "title": task.title,
        "parameters": task.parameters,
        "examples": count,
        "seeds": sweep.SEEDS[name],
        "sizes": sizes,
        "cells": {
            optimizer: [cell(optimizer, size) for size in sizes] for optimizer in sweep.MAKERS
        },
    }


if __name__ == "__main__":
    main()
