"""Where a comparison stands, in a file: to go on after Ctrl-C, or after the machine went down.

One file for all optimizers, so that they are at the same step in it. It is replaced in one go.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optax_lamblion.demo.compare import Run

NAME = "checkpoint.npz"
_CURVES = ("train_losses", "held_out_steps", "held_out", "step_ms")


def save(folder: Path, settings: Any, runs: Sequence[Run]) -> None:
    """Writes the runs, and the settings (JSON) that they are of."""
    curves = {run.name: {name: getattr(run, name) for name in _CURVES} for run in runs}
    about = json.dumps({"settings": settings, "curves": curves})
    arrays = {f"{run.name}/{i}": np.asarray(x) for run in runs for i, x in enumerate(_leaves(run))}
    temporary = folder / f".{NAME}"
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, about=np.asarray(about), **arrays)
        os.replace(temporary, folder / NAME)
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(folder: Path) -> Any:
    """The settings of the runs that a file is of."""
    with np.load(folder / NAME) as content:
        return json.loads(str(content["about"]))["settings"]


def restore(folder: Path, runs: Sequence[Run]) -> None:
    """Puts the runs where they were; they are as new, and of the same settings."""
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
