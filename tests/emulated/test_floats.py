"""Operations of floats against results that are known exactly."""

import ml_dtypes
import numpy as np
import pytest

from tests.emulated import operations
from tests.emulated.approximate import ERRORS, End
from tests.emulated.exact import RNG, Fraction, assert_same, floats, rounded, run
from tests.emulated.faults import Unknown


def hard_sums(count):
    """`a * b + c` close to the middle of two float32, or subnormal."""
    a = np.float32(1) + RNG.integers(0, 2**12, count) * np.float32(2.0**-12)
    b = np.ones(count, np.float32)
    c = np.float32(2.0**-24) * (1 + RNG.integers(-3, 4, count) * np.float32(2.0**-23))
    small = slice(count // 2, None)
    a[small] = np.ldexp(RNG.uniform(1, 2, count - count // 2), -70)
    b[small] = np.ldexp(RNG.uniform(1, 2, count - count // 2), RNG.integers(-80, -56))
    c[small] = RNG.integers(-4, 4, count - count // 2) * 2.0**-149
    return a, b.astype(np.float32), c.astype(np.float32)


@pytest.mark.parametrize("arguments", [hard_sums(2000), (floats(), floats(), floats())])
def test_fma_rounds_once(arguments):
    got = run("fma.rn.f32", *arguments)
    finite = np.isfinite(arguments).all(axis=0)
    exact = [
        rounded(Fraction(a) * Fraction(b) + Fraction(c))
        for a, b, c in np.array(arguments).T[finite].astype(np.float64)
    ]
    np.testing.assert_array_equal(got[finite], np.array(exact, np.float32))
    with np.errstate(all="ignore"):
        a, b, c = (x[~finite].astype(np.float64) for x in arguments)
        assert_same(got[~finite], a * b + c)


@pytest.mark.parametrize("opcode", ["add", "sub", "mul"])
def test_arithmetic_rounds_as_ieee_says(opcode):
    a, b = floats(), floats()
    exact = {
        "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
    }[opcode]  # fmt: skip
    got, finite = run(f"{opcode}.f32", a, b), np.isfinite(a) & np.isfinite(b)
    for x, y, result in zip(a[finite], b[finite], got[finite], strict=True):
        assert result == rounded(exact(Fraction(float(x)), Fraction(float(y))))
    with np.errstate(all="ignore"):
        assert_same(got[~finite], exact(a, b)[~finite])


def test_quotients_are_rounded_once():
    a, b = floats(), floats()
    got, finite = run("div.rn.f32", a, b), np.isfinite(a) & np.isfinite(b) & (b != 0)
    for x, y, result in zip(a[finite], b[finite], got[finite], strict=True):
        assert result == rounded(Fraction(float(x)) / Fraction(float(y)))
    with np.errstate(all="ignore"):
        assert_same(got[~finite], (a / b)[~finite])


def test_pairs_are_two_numbers_each():
    arguments = [floats() for _ in range(3)]
    pairs = [x.view(np.uint64) for x in arguments]
    for opcode, count in (("fma.rn", 3), ("add", 2), ("sub", 2), ("mul", 2)):
        got = run(f"{opcode}.f32x2", *pairs[:count]).view(np.float32)
        assert_same(got, run(f"{opcode}.f32", *arguments[:count]))
    # A pair that all threads share.
    got = run("add.f32x2", pairs[0], pairs[1][:1].reshape(())).view(np.float32)
    assert_same(got, run("add.f32", arguments[0], np.tile(arguments[1][:2], 2048)))


@pytest.mark.parametrize("name, dtype", [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_factors_of_16_bits_are_widened(name, dtype):
    with np.errstate(all="ignore"):
        a, b = (floats().astype(dtype) for _ in range(2))
    c = floats()
    got = run(f"fma.rn.f32.{name}", a.view(np.uint16), b.view(np.uint16), c)
    assert_same(got, run("fma.rn.f32", a.astype(np.float32), b.astype(np.float32), c))


def test_the_larger_and_the_smaller_of_two_numbers():
    a, b = floats(), floats()
    b[::7] = -a[::7]
    nan = np.isnan(a) | np.isnan(b)
    one = np.where(np.isnan(a), b, a)
    for name, pick in (("max", max), ("min", min)):
        # Zeros by their signs.
        order = ([(float(x), not np.signbit(x)) for x in numbers] for numbers in (a, b))
        expected = np.array([
            x if pick(i, j) == i else y for x, y, i, j in zip(a, b, *order, strict=True)
        ])  # fmt: skip
        assert_same(run(f"{name}.f32", a, b), np.where(nan, one, expected))
        assert_same(run(f"{name}.NaN.f32", a, b), np.where(nan, np.nan, expected))


def test_signs():
    x = floats()
    for got, expected in (
        (run("abs.f32", x.view(np.uint32)), x.view(np.uint32) & np.uint32(2**31 - 1)),
        (run("neg.f32", x.view(np.uint32)), x.view(np.uint32) ^ np.uint32(2**31)),
        (run("abs.bf16", x.view(np.uint16)), x.view(np.uint16) & np.uint16(2**15 - 1)),
        (run("abs.f16", x.view(np.uint16)), x.view(np.uint16) & np.uint16(2**15 - 1)),
        (run("abs.bf16x2", x.view(np.uint32)), x.view(np.uint32) & np.uint32(0x7FFF7FFF)),
    ):
        np.testing.assert_array_equal(got, expected)


def test_conversions_between_floats():
    a, b = floats(), floats()
    for type_, dtype in (("bf16", ml_dtypes.bfloat16), ("f16", np.float16)):
        with np.errstate(over="ignore", invalid="ignore"):
            expected = [x.astype(dtype).astype(np.float32) for x in (b, a)]
        pair = run(f"cvt.rn.{type_}x2.f32", a, b)
        halves = [pair.astype(np.uint16), (pair >> np.uint32(16)).astype(np.uint16)]
        for half, x in zip(halves, expected, strict=True):
            assert (half[np.isnan(x)] == 0x7FFF).all()
            assert_same(run(f"cvt.f32.{type_}", half[~np.isnan(x)]), x[~np.isnan(x)])
        every = np.arange(2**16).astype(np.uint16)
        with np.errstate(invalid="ignore"):
            expected = every.view(dtype).astype(np.float32)
        np.testing.assert_array_equal(run(f"cvt.f32.{type_}", every), expected)


EXACT = {
    "lg2.approx.ftz.f32": np.log2, "rcp.approx.f32": lambda x: 1 / x, "sqrt.approx.f32": np.sqrt,
    "rsqrt.approx.f32": lambda x: 1 / np.sqrt(x), "ex2.approx.ftz.f32": np.exp2,
}  # fmt: skip


@pytest.mark.parametrize("opcode", EXACT)
def test_approximations_go_to_the_ends_of_their_error(opcode):
    name = opcode.split(".")[0]
    x = np.abs(floats())
    x = np.append(x[(x > 2.0**-100) & (x < 2.0**100)], np.float32([1, 4]))
    if name == "ex2":
        x = np.concatenate([np.log2(x), -RNG.uniform(0, 1, 100).astype(np.float32)])
    exact = EXACT[opcode](x.astype(np.float64))
    low, nearest, high = (
        run(opcode, x, end=end).astype(np.float64) for end in (End.LOW, End.NEAREST, End.HIGH)
    )
    error = ERRORS[name] * np.abs(exact)
    if name == "lg2":
        error = np.where((x > 0.5) & (x < 2), ERRORS[name], error)
    np.testing.assert_array_equal(nearest, exact.astype(np.float32))
    assert (exact - error <= low).all() and (high <= exact + error).all()
    assert (low <= nearest).all() and (nearest <= high).all()
    # The next number would be beyond it.
    for outermost, way in ((low, -np.inf), (high, np.inf)):
        beyond = np.nextafter(outermost.astype(np.float32), np.float32(way)).astype(np.float64)
        reached = np.abs(beyond - exact) > error
        if name == "rcp":  # one ulp, not 2**-23 of the result
            reached |= np.abs(beyond - exact) > np.spacing(np.abs(exact).astype(np.float32))
        assert reached.all()
    assert (low != high).mean() > 0.9


def test_approximations_of_what_is_no_number():
    for end in End:
        x = np.float32([0, -0.0, np.inf, -np.inf, np.nan, -1, 1e-40])
        nan, inf = np.nan, np.inf
        assert_same(run("rcp.approx.f32", x[:5], end=end), [inf, -inf, 0, -0.0, nan])
        assert_same(run("sqrt.approx.f32", x[:6], end=end), [0, -0.0, inf, nan, nan, nan])
        assert_same(run("lg2.approx.ftz.f32", x, end=end), [-inf, -inf, inf, nan, nan, nan, -inf])
        x = np.float32([inf, -inf, nan, 200, -200, -127])
        assert_same(run("ex2.approx.ftz.f32", x, end=end), [inf, 0, nan, inf, 0, 0])
    assert_same(run("ex2.approx.ftz.f32", np.float32([-0.0, 1e-40]), end=End.NEAREST), [1, 1])


@pytest.mark.parametrize(
    "opcode", ["frobnicate.b32", "add.rz.f32", "fma.rn.f64", "cvt.rz.bf16x2.f32", "sin.approx.f32"]
)
def test_an_instruction_that_is_not_known_is_refused(opcode):
    name, *modifiers = opcode.split(".")
    with pytest.raises(Unknown):
        operations.operation(name, tuple(modifiers))
