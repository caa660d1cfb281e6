"""Errors that a user of the command line can act on."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator


class CommandError(Exception):
    """Input that cannot be used. Shown as one line, without a traceback, with exit status 2."""


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Turns a `ValueError` into a `CommandError`: for code that only checks what the user gave."""
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error)) from error


def require(modules: dict[str, str]) -> None:
    """Raises unless `modules`, a mapping from module to distribution, can all be imported."""
    missing = [name for module, name in modules.items() if not importlib.util.find_spec(module)]
    if missing:
        raise CommandError(
            f"this needs {', '.join(missing)}. Type: pip install {' '.join(missing)}"
        )
