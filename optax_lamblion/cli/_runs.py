"""Folders of training runs: one for each run, never overwritten, to be continued after any end.

`settings.toml` is there from the beginning and `results.json` says how the run ended. A run without
that, or with one that says that it was interrupted, is unfinished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optax_lamblion.cli._errors import CommandError
from optax_lamblion.cli._options import TrainOptions
from optax_lamblion.cli._settings import TrainSettings, read_settings
from optax_lamblion.demo import checkpoint

try:
    import fcntl
except ImportError:  # on Windows, where two processes may continue the same run
    fcntl = None

HOME = Path("optax-lamblion-runs")
SETTINGS, RESULTS, PLOT, DARK_PLOT = (
    *("settings.toml", "results.json"),
    *("comparison.png", "comparison-dark.png"),
)
_FILES = (SETTINGS, RESULTS, PLOT, DARK_PLOT, checkpoint.NAME)
_ANYTIME = ("output", "resume", "quiet")  # options that do not decide any number


def create(output: Path | None, settings: TrainSettings) -> Path:
    """Makes the folder of a new run, with its settings in it."""
    folder = _unused(settings) if output is None else output
    if any((folder / name).exists() for name in _FILES):
        resume = "" if is_finished(folder) else f"Continue it with `--resume {folder}`. "
        raise CommandError(
            f"{str(folder)!r} already holds a run. {resume}"
            "For a new run, choose another folder with `--output DIR`."
        )
    text = (
        "# The options of this run, as `optax-lamblion train --config FILE` reads them.\n[train]\n"
    )
    for name, value in settings.as_options().items():
        # JSON is TOML here, but for one character that TOML wants escaped.
        value = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        text += f"{name} = {value}\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with checkpoint.replacing(folder / SETTINGS) as file:
            file.write(text.encode())
    except OSError as error:
        raise CommandError(
            f"cannot write to {str(folder)!r}: {error.strerror or error}. "
            "Choose another folder with `--output DIR`."
        ) from error
    return folder


def find(options: TrainOptions) -> Path:
    """The folder of the run that `--resume` means."""
    named = list(options.resume or ())
    if options.output is not None:
        named.append(options.output)
    if len({path.absolute() for path in named}) > 1:
        raise CommandError(
            f"`--resume {named[0]}` and `--output {named[1]}` name two folders. Leave one out."
        )
    if named:
        if not (named[0] / SETTINGS).is_file():
            raise CommandError(
                f"there is no run to continue in {str(named[0])!r}. Name the folder of one, or "
                "type `--resume` alone for the newest unfinished run."
            )
        return named[0]
    runs = sorted(HOME.glob(f"*/{SETTINGS}"), key=lambda path: path.stat().st_mtime_ns)
    for folder in reversed([path.parent for path in runs]):
        if not is_finished(folder):
            with contextlib.suppress(CommandError), locked(folder):
                return folder
    raise CommandError(
        f"there is no unfinished run in {str(HOME)!r}. Name the folder of a run with "
        "`--resume DIR`, or start one without `--resume`."
    )


def is_finished(folder: Path) -> bool:
    """Whether a run took all of its steps and wrote its results."""
    try:
        return not json.loads((folder / RESULTS).read_bytes())["interrupted"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def stored_settings(folder: Path, options: TrainOptions) -> TrainSettings:
    """The settings that a run was started with; `options` must not contradict them."""
    try:
        table = tomllib.loads((folder / SETTINGS).read_text(encoding="utf-8"))["train"]
        stored = _as_options(table)
        settings = read_settings(stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{str(folder / SETTINGS)!r} cannot be read: {error}. A run cannot continue without."
        ) from error
    have = settings.as_options()
    for name, value in dataclasses.asdict(options).items():
        if name in _ANYTIME or value is None:
            continue
        try:
            asked = read_settings(dataclasses.replace(stored, **{name: value})).as_options()[name]
        except (ValueError, KeyError):  # it does not go together with the others
            asked = list(value) if isinstance(value, tuple) else value
        if asked != have.get(name):
            raise CommandError(
                f"the run in {str(folder)!r} was started with {name} = {have.get(name)!r}, and now "
                f"it is {asked!r}. Leave `--{name.replace('_', '-')}` out: `--resume` needs no "
                "other options. For other settings, start a run without `--resume`."
            )
    return settings


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run, until this process ends in whatever way; raises if another process holds it."""
    with (folder / SETTINGS).open("rb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CommandError(
                    f"the run in {str(folder)!r} is under way in another process."
                ) from None
            except OSError:  # a file system without locks
                pass
        yield


def _unused(settings: TrainSettings) -> Path:
    """A folder that is not there yet, named by the data and the time."""
    data = settings.data if settings.dtype == "float32" else f"{settings.data}-{settings.dtype}"
    name = f"{data}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder, number = HOME / name, 1
    while folder.exists():
        number += 1
        folder = HOME / f"{name}-{number}"
    return folder


def _as_options(table: Mapping[str, Any]) -> TrainOptions:
    given: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in table.items()
    }
    if "text" in given:
        given["text"] = Path(given["text"])
    return TrainOptions(**given)
