"""The command line that benchmarks of trainings share: what is kept of one that is interrupted."""

import argparse
import pathlib


def parser(name, about, *, less="--steps", draws=False):
    """The parser of `python -m benchmarks.<name>`.

    Args:
      name: That of the benchmark's package.
      about: The docstring of its command.
      less: The option for a smaller run, of which nothing is kept.
      draws: Whether it has plots.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(less, type=int, help="so many, and nothing is kept: to try it")
    folder = pathlib.Path("optax-lamblion-runs") / name.replace("_", "-")
    made.add_argument("--runs", type=pathlib.Path, default=folder)
    if draws:
        made.add_argument("--draw", action="store_true", help="only the plots, of what is kept")
    return made
