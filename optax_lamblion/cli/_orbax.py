"""Orbax checkpoints of a state: written whole, or not at all; and read, whatever they are."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
import warnings

import jax
import orbax.checkpoint

from optax_lamblion import LionState
from optax_lamblion.cli._errors import CommandError

_SMALL, _MOST_COMPRESSED = 2**28, 100
"""Bytes that a checkpoint may always have in memory, and how much more than in files."""


def save_state(path: pathlib.Path, state) -> None:
    """Writes a state to a new folder, which is whole or not there."""
    if not path.absolute().parent.is_dir():
        raise CommandError(f"there is no folder '{path.parent}' to write '{path.name}' into.")
    beside = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    try:
        with _quiet(), orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(beside / "state", state)
            checkpointer.wait_until_finished()
        os.rename(beside / "state", path)
    except OSError:
        raise
    except Exception as error:
        raise CommandError(f"'{path}' could not be written: {_reason(error)}.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def restore_lion(path: pathlib.Path) -> LionState:
    """The state of Lion in a checkpoint, which must have one."""
    found = []

    def look(node):
        if isinstance(node, dict) and {"count", "mu"} <= node.keys():
            if node.get("nu") is None:
                found.append(node)
            return
        children = node.values() if isinstance(node, dict) else node
        for child in children if isinstance(node, dict | list | tuple) else ():
            look(child)

    look(_restore(path))
    if len(found) != 1:
        raise CommandError(f"the checkpoint has {len(found)} states of Lion; there must be one.")
    return LionState(**{name: found[0].get(name) for name in LionState._fields})


def _restore(path):
    """A checkpoint as dicts, lists and arrays."""
    try:
        with _quiet(), orbax.checkpoint.StandardCheckpointer() as checkpointer:
            _check_size(path, checkpointer.metadata(path.absolute()).item_metadata)
            return checkpointer.restore(path.absolute())
    except CommandError:
        raise
    except Exception as error:  # damage surfaces as nearly any kind
        raise CommandError(
            f"'{path}' is no checkpoint of Orbax that can be read: it is damaged, cut short or "
            f"something else. ({_reason(error)})"
        ) from error


def _check_size(path, metadata):
    """Raises `CommandError` if there is far more to restore than files have room for."""
    arrays = [x for x in jax.tree.leaves(metadata) if hasattr(x, "shape")]
    if not arrays:
        raise CommandError(f"'{path}' has no arrays, or files that list them are missing.")
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    there = sum(x.stat().st_size for x in path.rglob("*") if x.is_file())
    if size > _SMALL + _MOST_COMPRESSED * there:
        raise CommandError(
            f"'{path}' says that it has {size:,} bytes of arrays, in files of {there:,} bytes. It "
            "is damaged."
        )


def _reason(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _quiet():
    """What Orbax and its libraries say of a damaged checkpoint is said once, by us."""
    level, hook = logging.root.manager.disable, sys.unraisablehook
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable()
        sys.unraisablehook = lambda _: None
        try:
            yield
        except Exception:
            # After an error other reads are still under way, and complain when they end.
            time.sleep(_UNDER_WAY)
            gc.collect()
            raise
        finally:
            sys.unraisablehook = hook
            logging.disable(level)


_UNDER_WAY = 0.3  # seconds
