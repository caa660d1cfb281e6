"""Paths of parameters that come from a file, and the tree that they make."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from optax_lamblion.cli._errors import CommandError

_LONGEST = 2**24  # bytes of a file of names


def read(path: pathlib.Path | None) -> list[str] | None:
    """Paths in a file: a JSON list, or lines."""
    if path is None:
        return None
    if not path.is_file():
        raise CommandError(f"there is no file '{path}' with names.")
    if path.stat().st_size > _LONGEST:
        raise CommandError(f"'{path}' is too large for a file of names. Name one path a line.")
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"'{path}' is neither lines of text nor JSON: {error}.") from error
    if not all(isinstance(name, str) for name in names):
        raise CommandError(f"'{path}' must be a list of paths such as \"encoder/kernel\".")
    return names


def _lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def as_tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of what paths name, which must be names that can stand beside each other."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        if any(part in ("", ".", "..") for part in (*parents, last)):
            raise CommandError(
                f"a parameter cannot be called {path!r}. Give it a path such as "
                '"encoder/kernel", with `--names FILE`.'
            )
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise CommandError(
                f"the parameter {path!r} and another one cannot both be there: one is called "
                "as the other, or inside of it. Give them other paths with `--names FILE`."
            )
        node[last] = leaf
    return tree
