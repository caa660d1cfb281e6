"""Trains what `docs/bfloat16.md` shows, and writes its table and its plot.

    python -m tests.bfloat16 [--optimizers lion8bit,...]
    python -m tests.bfloat16 --write    # trains nothing: the page and the plot, of what there is

These are the trainings of `./dev train --dtype bfloat16`, with three seeds, at the learning rate of
the optimizer and at a tenth of it: six minutes for an optimizer on two cores. Losses go to
`results.json` beside this file, where they replace those of the same optimizer.
"""

import argparse

from optax_lamblion.cli._info import versions
from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.cli._settings import read_settings
from optax_lamblion.cli._train import make_optimizers, make_task
from optax_lamblion.demo.compare import compare
from optax_lamblion.demo.optimizers import find_optimizers
from tests.bfloat16 import report

SHOWN = "lion8bit,adamw8bit,lamb8bit"
SEEDS = (0, 1, 2)
FACTORS = (1.0, 0.1)


def train(optimizer, factor, seed, **given):
    """The runs of all ways to keep parameters, side by side: what is kept of each, and of all."""
    rate = factor * optimizer.learning_rate
    settings = read_settings(
        TrainOptions(
            dtype="bfloat16",
            optimizers=(optimizer.name,),
            learning_rate=(f"{rate:g}",),
            seed=seed,
            **given,
        )
    )
    task = make_task(settings)
    ways = {entry.name: entry.way for entry in settings.entries}
    runs = compare(task, make_optimizers(settings), steps=settings.steps, ways=ways)
    about = {"task": task.title, "parameters": task.parameter_count, "steps": settings.steps}
    return about, [
        {
            "learning_rate": rate,
            "seed": seed,
            "way": ways[run.name].name,
            "bytes": round(run.total_bytes_per_parameter, 3),
            "steps": run.held_out_steps,
            "loss": [round(values["loss"], 5) for values in run.held_out],
            "loss_16bit": round(run.held_out[-1]["loss_16bit"], 5),
        }
        for run in runs
    ]


def train_all(optimizer, **given):
    """All that is kept of an optimizer."""
    about, runs = {}, []
    for seed in SEEDS:
        for factor in FACTORS:
            about, some = train(optimizer, factor, seed, **given)
            runs += some
            ends = "  ".join(f"{run['way']} {run['loss'][-1]:.3f}" for run in some)
            print(f"{optimizer.name}, seed {seed}, rate x {factor}: {ends}", flush=True)
    used = {name: version for name, version in versions().items() if version}
    return {**about, "versions": used, "runs": runs}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.bfloat16",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--optimizers", default=SHOWN, metavar="A,B,...")
    parser.add_argument("--write", action="store_true", help="train nothing")
    parser.add_argument("--steps", type=int, help="so many, and nothing is written: to try it")
    args = parser.parse_args(arguments)
    results = report.read()
    given = {"steps": args.steps} if args.steps else {}
    for optimizer in [] if args.write else find_optimizers(args.optimizers):
        results[optimizer.name] = train_all(optimizer, **given)
        if not args.steps:
            report.write(results)
    if args.steps:
        print(report.markdown(results))
    elif args.write:
        report.write(results)


if __name__ == "__main__":
    main()
