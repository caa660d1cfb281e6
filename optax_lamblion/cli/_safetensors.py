"""The tensors that a `.safetensors` file says it has, from its header alone.

Such a file is eight bytes, the length of the header; the header, JSON with dtype, shape and place
of each tensor; and their data, which is not looked at. The file may come from anybody, so a header
that is too long or contradicts itself is refused.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any, NamedTuple

# Bits of an element, for all that the format knows.
_BITS = {
    **dict.fromkeys(["F64", "I64", "U64", "C64"], 64),
    **dict.fromkeys(["F32", "I32", "U32"], 32),
    **dict.fromkeys(["F16", "BF16", "I16", "U16"], 16),
    **dict.fromkeys(["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"], 8),
    **dict.fromkeys(["I8", "U8", "BOOL"], 8),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    "F4": 4,
}
_LONGEST_HEADER = 2**25  # bytes, which is a long line for each of the tensors
_MOST_TENSORS = 200_000
_MOST_AXES = 32
_LARGEST = 2**53  # elements of a tensor


class Tensor(NamedTuple):
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file by their names; raises `ValueError` if it cannot be such a file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header would have {length:,} bytes")
            header = file.read(length)
        if len(header) < length or not header.startswith(b"{"):
            raise ValueError("there is no whole header in it")
        return _tensors(json.loads(header, object_pairs_hook=_without_repetition))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{path}' is damaged, cut short or no .safetensors file: "
            f"{str(error).partition(chr(10))[0]}. Download it again."
        ) from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has two entries of the same name")
    return found


def _tensors(header: dict[str, Any]) -> dict[str, Tensor]:
    header.pop("__metadata__", None)
    if len(header) > _MOST_TENSORS:
        raise ValueError(f"it has {len(header):,} tensors, and {_MOST_TENSORS:,} are the most")
    tensors, places = {}, []
    for name, entry in header.items():
        tensors[name], place = _entry(name, entry)
        places.append(place)
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {min(first, end):,}")
        end = last
    return tensors


def _entry(name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    """A tensor, and from which byte to which it has its data."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is no dtype, shape and place")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name!r} has the dtype {dtype!r}, which the format does not have")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES or math.prod(shape) > _LARGEST:
        raise ValueError(f"{name!r} has the shape {shape!r}")
    if not _are_sizes(place) or len(place) != 2:
        raise ValueError(f"{name!r} is at {place!r}")
    first, last = place
    if 8 * (last - first) != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{name!r} takes {last - first:,} bytes, which its shape does not")
    return Tensor(dtype, tuple(shape)), (first, last)


def _are_sizes(value: Any) -> bool:
    """Whether this is a list of whole numbers that are not negative."""
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
    )
