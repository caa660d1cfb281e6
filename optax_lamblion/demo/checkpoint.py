"""A checkpoint of a comparison: it continues after Ctrl-C, or after the machine went down.

One file for all optimizers, so that all of them are at the same step in it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from optax_lamblion.demo.compare import Run

NAME = "checkpoint.npz"
_CURVES = ("train_losses", "held_out_steps", "held_out", "step_ms")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(folder: Path, about: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Writes the runs, with something in JSON about them."""
    curves = {run.name: {name: getattr(run, name) for name in _CURVES} for run in runs}
    arrays = {f"{run.name}/{i}": np.asarray(x) for run in runs for i, x in enumerate(_leaves(run))}
    text = json.dumps({"about": about, "curves": curves})
    with replacing(folder / NAME) as file:
        np.savez(file, allow_pickle=False, about=np.asarray(text), **arrays)


def about(folder: Path) -> dict[str, Any]:
    """What `save` was told about the runs."""
    with np.load(folder / NAME) as content:
        return json.loads(str(content["about"]))["about"]


def restore(folder: Path, runs: Sequence[Run]) -> None:
    """Puts the runs, which are new and have the same settings, where the saved ones were."""
    with np.load(folder / NAME) as content:
        curves = json.loads(str(content["about"]))["curves"]
        for run in runs:
            for name in _CURVES:
                setattr(run, name, curves[run.name][name])
            leaves = _leaves(run)
            saved = [content[f"{run.name}/{i}"] for i in range(len(leaves))]
            # NumPy's files do not know bfloat16: what comes back are the same bytes without a name.
            placed = [
                jax.device_put(x.view(like.dtype), like.sharding)
                for x, like in zip(saved, leaves, strict=True)
            ]
            tree = jax.tree.structure((run.params, run.state))
            run.params, run.state = tree.unflatten(placed)


def _leaves(run: Run) -> list[jax.Array]:
    return jax.tree.leaves((run.params, run.state))
