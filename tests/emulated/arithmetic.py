"""Sums, products and functions of numbers."""

import functools

import numpy as np

from tests.emulated import rounding
from tests.emulated.approximate import FUNCTIONS, approximate
from tests.emulated.memory import UNSIGNED
from tests.emulated.ptx import BITS
from tests.emulated.table import Operation, Table, as_bits, type_of

TABLE = Table()


def _of_floats(type_, count, function):
    """An operation of float32 numbers, or of pairs of them, with NVIDIA's NaN."""
    if type_ == "f32":
        return Operation(("f32",) * count, lambda *x: rounding.canonical(function(*x)))
    if type_ != "f32x2":
        raise ValueError(type_)

    def of_pairs(*pairs):
        halves = (np.atleast_1d(x).view(np.float32).reshape(-1, 2) for x in pairs)
        result = rounding.canonical(function(*halves))
        return np.ascontiguousarray(result).view(np.uint64).reshape(-1)

    return Operation(("u64",) * count, of_pairs)


@TABLE.enter("add", "sub")
def _sum(name, modifiers):
    type_, function = type_of(modifiers, "rn"), np.add if name == "add" else np.subtract
    if type_[0] == "f":
        return _of_floats(type_, 2, function)
    return Operation((as_bits(type_),) * 2, function)


@TABLE.enter("fma")
def _fma(name, modifiers):
    if modifiers in (("rn", "f32", "bf16"), ("rn", "f32", "f16")):  # factors of 16 bits
        wide = rounding.WIDENED[modifiers[-1]]

        def mixed(a, b, c):
            return rounding.canonical(rounding.fma(wide(a), wide(b), c))

        return Operation(("u16", "u16", "f32"), mixed)
    return _of_floats(type_of(modifiers, "rn"), 3, rounding.fma)


@TABLE.enter("mul", "mad")
def _product(name, modifiers):
    type_ = type_of(modifiers, "rn", "lo", "hi", "wide")
    if name == "mul" and type_[0] == "f":
        return _of_floats(type_, 2, np.multiply)
    (how,), bits = modifiers[:-1], BITS[type_]
    twice = f"{type_[0]}{2 * bits}"
    wide = {"s": np.int64, "u": np.uint64}[type_[0]]
    if how != "lo" and bits > 32:
        raise ValueError(type_)

    def product(a, b, c=None):
        whole = a.astype(wide) * b.astype(wide)
        whole = whole >> wide(bits) if how == "hi" else whole
        whole = whole.astype(UNSIGNED[2 * bits if how == "wide" else bits])
        return whole if c is None else whole + c

    third = () if name == "mul" else (as_bits(twice if how == "wide" else type_),)
    return Operation((type_, type_, *third), product)


@TABLE.enter("min", "max")
def _extreme(name, modifiers):
    type_ = type_of(modifiers, "NaN")
    if type_ != "f32":
        return Operation((type_,) * 2, {"min": np.minimum, "max": np.maximum}[name])
    with_nan = "NaN" in modifiers
    # By their bits, zeros are ordered too: -0 < +0.
    both = np.bitwise_or if name == "min" else np.bitwise_and
    function = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[name][with_nan]

    def extreme(a, b):
        zeros = (a == 0) & (b == 0)
        signed = both(a.view(np.uint32), b.view(np.uint32)).view(np.float32)
        return np.where(zeros, signed, function(a, b))

    return _of_floats("f32", 2, extreme)


@TABLE.enter("abs", "neg")
def _sign(name, modifiers):
    type_ = type_of(modifiers)
    if type_[0] == "s":
        return Operation((type_,), {"abs": np.abs, "neg": np.negative}[name])
    bits = _SIGNS[type_]
    sign = UNSIGNED[BITS[type_]](bits)
    function = (lambda x: x & ~sign) if name == "abs" else (lambda x: x ^ sign)
    return Operation((as_bits(type_),), function)


_SIGNS = {"f32": 1 << 31, "f32x2": 1 << 63 | 1 << 31}
_SIGNS |= dict.fromkeys(("bf16", "f16"), 1 << 15) | dict.fromkeys(("bf16x2", "f16x2"), 0x80008000)


@TABLE.enter("div")
def _quotient(name, modifiers):
    if modifiers != ("rn", "f32"):
        raise ValueError(modifiers)
    return _of_floats("f32", 2, np.divide)


@TABLE.enter(*FUNCTIONS)
def _approximate(name, modifiers):
    if modifiers not in (("approx", "f32"), ("approx", "ftz", "f32")):
        raise ValueError(modifiers)
    function = functools.partial(approximate, name, flush="ftz" in modifiers)
    return Operation(("f32",), function, ends=True)
