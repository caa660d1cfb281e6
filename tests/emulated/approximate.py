"""Instructions that are only approximate: nobody but the hardware knows their last bits.

The manual of PTX bounds their errors. An emulation computes them rounded to nearest, or at the low
or the high end of what the bound allows: what is right at all three hardly hangs on these bits.
"""

import enum

import numpy as np

from tests.emulated.rounding import canonical, flushed


class End(enum.Enum):
    """How an approximate instruction errs."""

    NEAREST = 0
    LOW = -1
    HIGH = 1


FUNCTIONS = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
"""In float64, by the name of the instruction."""

ERRORS = {"ex2": 2.0**-22, "lg2": 2.0**-22, "rcp": 2.0**-23, "sqrt": 2.0**-23, "rsqrt": 2.0**-22.9}
"""The largest relative error, by the PTX manual (version 9). That of `lg2` is absolute where its
argument is between 1/2 and 2; of `rcp` the manual says one ulp, which is this much of a mantissa of
1 and half of it just below 2."""


def bound(name, x, exact):
    """How far a result may be from the exact one, for float64 arguments."""
    if name == "rcp":
        with np.errstate(over="ignore"):
            return np.where(exact == 0, 0, np.ldexp(ERRORS[name], np.frexp(exact)[1] - 1))
    relative = ERRORS[name] * np.abs(exact)
    return np.where((x > 0.5) & (x < 2), ERRORS[name], relative) if name == "lg2" else relative


def approximate(name, x, end, *, flush):
    """What the instruction may return for float32 `x`; `flush` is of its modifier `.ftz`."""
    wide = (flushed(x) if flush else x).astype(np.float64)
    exact = np.asarray(FUNCTIONS[name](wide))
    result = exact.astype(np.float32)
    if end is not End.NEAREST:
        error = bound(name, wide, exact)  # none of a zero that is no logarithm
        result = np.where(np.isfinite(exact) & (error > 0), _at_end(exact, error, end), result)
    return canonical(flushed(result) if flush else result)


def _at_end(exact, error, end):
    """The outermost float32 within the error of an exact result."""
    moved = (exact + end.value * error).astype(np.float32)
    beyond = np.abs(moved.astype(np.float64) - exact) > error
    return np.where(beyond, np.nextafter(moved, exact.astype(np.float32)), moved)
