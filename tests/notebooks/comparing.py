"""Whether outputs that are kept in git are those of a fresh execution.

Text has to be the same, word for word. Numbers that a training or another compiler moves have a
tolerance, which is stated for the cell, with its reason. Where a cell prints what the machine is,
only the kind of output is compared. Pictures have to look alike.
"""

import re
from typing import NamedTuple

import numpy as np

from tests.notebooks.executing import code_cells, picture, texts


class Close(NamedTuple):
    """How far the numbers of a cell may be from those that are kept."""

    because: str
    relative: float = 0.0
    absolute: float = 0.0


class SameKind(NamedTuple):
    """Only the kind of output is compared."""

    because: str


EXACT = Close("nothing in it depends on the machine")

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")

THUMBNAIL = (48, 24)
UNLIKE = 0.02
"""The mean difference of two thumbnails, 1 from black to white.

A plot that is moved by a pixel is 0.01 from itself, and the nearest two plots of these notebooks
are 0.029 apart: `test_comparing.py` holds them to it.
"""


def differences(kept, fresh, tolerances):
    """What is out of date in `kept`, a line for each output, by `{cell id: tolerance}`."""
    found = []
    for old, new in zip(code_cells(kept), code_cells(fresh), strict=True):
        why = _outputs_differ(old.outputs, new.outputs, tolerances.get(old.id, EXACT))
        if why:
            found.append(f"{old.id}: {why}")
    return found


def _outputs_differ(kept, fresh, tolerance):
    if [_kinds(x) for x in kept] != [_kinds(x) for x in fresh]:
        return f"kept {[_kinds(x) for x in kept]}, now {[_kinds(x) for x in fresh]}"
    for old, new in zip(kept, fresh, strict=True):
        if isinstance(tolerance, Close):
            for kind, text in texts(old).items():
                if why := text_differs(text, texts(new)[kind], tolerance):
                    return why
        if "image/png" in old.get("data", {}):
            if why := pictures_differ(old.data["image/png"], new.data["image/png"]):
                return why
    return None


def _kinds(output):
    return output.output_type, *sorted(texts(output)), *sorted(output.get("data", {}))


def text_differs(kept, fresh, tolerance):
    """None, or the words or the number that differ: tags and spaces do not count."""
    (old_words, old), (new_words, new) = _parsed(kept), _parsed(fresh)
    if old_words != new_words:
        return f"kept\n{kept}\nnow\n{fresh}"
    for a, b in zip(old, new, strict=True):
        # The last digit that is shown may be rounded the other way.
        digit = 0.0 if tolerance is EXACT else max(_last_digit(a), _last_digit(b))
        x, y = (float(number.replace(",", "")) for number in (a, b))
        if abs(x - y) > tolerance.absolute + tolerance.relative * abs(x) + 1.001 * digit:
            return f"kept {a}, now {b} ({tolerance})"
    return None


def _parsed(text):
    """A text without its numbers, and the numbers."""
    plain = re.sub(r"<[^<>]*>", " ", text)
    return NUMBER.sub("#", plain).split(), NUMBER.findall(plain)


def _last_digit(number):
    mantissa, _, exponent = number.replace(",", "").partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def pictures_differ(kept, fresh):
    """None, or how two pictures are unlike."""
    old, new = picture(kept), picture(fresh)
    if max(abs(a / b - 1) for a, b in zip(old.size, new.size, strict=True)) > 0.05:
        return f"kept a picture of {old.size}, now {new.size} pixels"
    apart = distance(old, new)
    return f"the pictures are {apart:.3f} apart" if apart > UNLIKE else None


def distance(a, b):
    """The mean difference of two pictures as thumbnails."""
    small = [np.asarray(x.convert("L").resize(THUMBNAIL, 4), float) / 255 for x in (a, b)]
    return np.abs(small[0] - small[1]).mean()


def is_blank(png):
    """Whether a picture has hardly any ink."""
    return np.asarray(picture(png).convert("L"), float).std() < 5
