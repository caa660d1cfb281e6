"""What a table of operations is made of."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from tests.emulated.ptx import BITS


class Operation(NamedTuple):
    """A function of what registers hold."""

    sources: tuple[str, ...]
    """Types of its arguments, as in PTX. Other floats than `f32` are given as their bits."""
    function: Callable
    """Returns an array with the bits of the result, of any type. Signed integers are extended by
    their sign where the register is wider."""
    ends: bool = False
    """Whether it is also given the `End` of its error to go to."""


class Table(dict):
    """By the name of an instruction, a function that makes an `Operation` of its modifiers.

    It raises `ValueError` or `KeyError` for a form that it does not know.
    """

    def enter(self, *names):
        """Enters a function of a name and modifiers."""

        def enter(build):
            self.update({name: functools.partial(build, name) for name in names})
            return build

        return enter


def type_of(modifiers, *allowed):
    """The type of an instruction; its other modifiers have to be among the allowed ones."""
    *others, type_ = modifiers
    if set(others) - set(allowed):
        raise ValueError(others)
    return type_


def as_bits(type_):
    """The type of bits that is as wide."""
    return type_ if type_ == "pred" else f"u{BITS[type_]}"
