"""Orbax checkpoints of a state, written and read whole."""

from __future__ import annotations

import pathlib

import orbax.checkpoint


def save_state(path: pathlib.Path, state) -> None:
    """Writes a state to a new folder."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), state)
        checkpointer.wait_until_finished()


def restore_state(path: pathlib.Path):
    """A checkpoint as dicts, lists and arrays."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute())
