"""What tests of operations share: arguments of all kinds, and exact results."""

import fractions

import numpy as np

from tests.emulated import operations

Fraction = fractions.Fraction
RNG = np.random.default_rng(0)
SPECIAL = np.array(
    [0, 1 << 31, 1, (1 << 31) + 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF]
    + [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x3F800000, 0xBF800000],
    np.uint32,
).view(np.float32)


def floats(count=4096):
    """Float32 of all kinds, a third of them of similar size."""
    bits = RNG.integers(0, 2**32, count, np.uint32)
    exponents = RNG.integers(110, 140, count, np.uint32) << np.uint32(23)
    bits[::3] = (bits & np.uint32(0x807FFFFF) | exponents)[::3]
    bits[: SPECIAL.size] = SPECIAL.view(np.uint32)
    return RNG.permutation(bits).view(np.float32)


def integers(count=4096):
    """Of 32 bits."""
    values = RNG.integers(0, 2**32, count, np.uint32)
    values[:6] = 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 31
    return RNG.permutation(values)


def run(opcode, *arguments, end=None):
    """What an operation makes of arrays."""
    name, *modifiers = opcode.split(".")
    found = operations.operation(name, tuple(modifiers))
    assert len(arguments) == len(found.sources)
    with np.errstate(all="ignore"):
        return np.asarray(found.function(*arguments, *([end] if found.ends else [])))


def assert_same(got, expected):
    """Equal floats, zeros with their signs; a NaN is NVIDIA's."""
    expected = np.asarray(expected, np.float32)
    nan = np.isnan(expected)
    bits = np.where(nan, np.uint32(0x7FFFFFFF), expected.view(np.uint32))
    np.testing.assert_array_equal(got.view(np.uint32), bits)


def rounded(x):
    """A fraction as the nearest float32, ties to even, by integers alone."""
    sign, x = (-1, -x) if x < 0 else (1, x)
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    exponent = max(exponent - (Fraction(2) ** exponent > x), -126)
    unit = Fraction(2) ** (exponent - 23)
    whole, rest = divmod(x, unit)
    whole += 2 * rest > unit or (2 * rest == unit and whole % 2)
    return sign * (float(whole * unit) if whole * unit < 2**128 else np.inf)


def signed(x, bits=32):
    """Integers of so many bits as signed ones."""
    return [int(v) - (int(v) >> (bits - 1) << bits) for v in x]
