"""Numbers as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from optax_lamblion.cli._errors import CommandError

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_BYTES = {f"{x}{y}": n**i for i, x in enumerate("kmgt", 1) for y, n in (("b", 1000), ("ib", 1024))}


def parse_count(given: str) -> int:
    """A number of parameters, as people write it: `7e9`, `7B`, `124_439_808`."""
    value = _number(given, _COUNTS)
    # Above 2**53 a float skips integers, and no model is there yet.
    if not (1 <= value <= 2**53 and value == round(value)):
        raise CommandError(
            f"`--params {given}` is not a number of parameters. "
            "Give a whole number of at least 1, such as `--params 7e9` or `--params 124M`."
        )
    return round(value)


def parse_bytes(given: str) -> int:
    """A size of memory, with its unit: `24GiB`, `80GB`, `1.5TiB`."""
    value = _number(given, _BYTES)
    if not 1 <= value <= 2**53:
        raise CommandError(
            f"`--device-memory {given}` is not a size. Give a number and its unit, such as "
            "`--device-memory 24GiB` or `--device-memory 80GB`."
        )
    return round(value)


def parse_fraction(given: str, name: str = "--memory-fraction") -> float:
    """A fraction of a memory, above 0 and up to 1; `name` says where it was given."""
    value = _number(given, {"": 1})
    if not 0 < value <= 1:
        raise CommandError(
            f"{given!r} of `{name}` is no fraction of a memory. Give a number above 0 and up to 1, "
            "such as 0.9."
        )
    return value


def _number(given: str, units: Mapping[str, int]) -> float:
    """A number and a unit; NaN for what is none."""
    match = re.fullmatch(r"([0-9._]+(?:e\+?[0-9]+)?)\s*([a-z]*)", given.strip().lower())
    try:
        return float(match[1]) * units[match[2]] if match else math.nan
    except (ValueError, OverflowError, KeyError):
        return math.nan
