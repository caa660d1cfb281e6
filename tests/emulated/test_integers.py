"""Operations of integers and bits against results that are known exactly."""

import ml_dtypes
import numpy as np
import pytest

from tests.emulated import operations
from tests.emulated.exact import RNG, Fraction, floats, integers, rounded, run, signed


def test_conversions_of_integers():
    x = integers()
    half = x.astype(np.uint16)
    for got, expected in (
        (run("cvt.rn.f32.s16", half.view(np.int16)), [float(v) for v in signed(half, 16)]),
        (run("cvt.rn.f32.u32", x), [rounded(Fraction(int(v))) for v in x]),
        (run("cvt.s8.s32", x.view(np.int32)), signed(x & np.uint32(255), 8)),
        (run("cvt.u16.u32", x), [int(v) % 2**16 for v in x]),
        (run("cvt.u64.u32", x), [int(v) for v in x]),
    ):
        np.testing.assert_array_equal(got, np.array(expected, got.dtype))


@pytest.mark.parametrize(
    "opcode, exact",
    [
        ("add.s32", lambda a, b: a + b),
        ("sub.s32", lambda a, b: a - b),
        ("mul.lo.s32", lambda a, b: a * b),
        ("mul.hi.u32", lambda a, b: a * b >> 32),
        ("and.b32", lambda a, b: a & b),
        ("or.b32", lambda a, b: a | b),
        ("xor.b32", lambda a, b: a ^ b),
        ("shl.b32", lambda a, b: a << b if b < 32 else 0),
        ("shr.u32", lambda a, b: a >> b if b < 32 else 0),
        ("max.u32", max),
        ("min.u32", min),
    ],
)
def test_integers_are_modulo_two_to_the_32(opcode, exact):
    a, b = integers(), integers()
    if opcode[:2] == "sh":
        b = b % np.uint32(40)
    types = operations.operation(opcode.split(".")[0], tuple(opcode.split(".")[1:])).sources
    given = [x.view(np.int32) if t == "s32" else x for x, t in zip((a, b), types, strict=True)]
    expected = [exact(int(x), int(y)) % 2**32 for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(run(opcode, *given).view(np.uint32), expected)


def test_signed_and_wide_integers():
    a, b = integers(), integers()
    c = RNG.integers(0, 2**64, a.size, np.uint64)
    by = b % np.uint32(40)
    for got, expected in (
        (
            run("shr.s32", a.view(np.int32), by),
            [x >> int(n) for x, n in zip(signed(a), by, strict=True)],
        ),
        (run("mul.wide.u32", a, b), [int(x) * int(y) for x, y in zip(a, b, strict=True)]),
        (
            run("mul.wide.s32", a.view(np.int32), b.view(np.int32)),
            [x * y for x, y in zip(signed(a), signed(b), strict=True)],
        ),
        (
            run("mad.lo.s64", c.view(np.int64), c[::-1].view(np.int64), c),
            [int(x) * int(y) + int(x) for x, y in zip(c, c[::-1], strict=True)],
        ),
        (run("max.s32", a.view(np.int32), b.view(np.int32)), list(map(max, signed(a), signed(b)))),
    ):  # fmt: skip
        bits = 8 * got.dtype.itemsize
        expected = np.array([x % 2**bits for x in expected], f"u{bits // 8}")
        np.testing.assert_array_equal(got.view(f"u{bits // 8}"), expected)


def test_bytes_are_permuted_by_their_numbers():
    a, b, selectors = integers(), integers(), integers()
    selectors[:5] = 0x7531, 0x3210, 0x9991, 0xBBB3, 0x5410

    def byte(low, high, selector):
        whole = (int(high) << 32 | int(low)) >> 8 * (selector & 7) & 255
        return whole if selector < 8 else 255 * (whole >> 7)

    expected = [
        sum(byte(x, y, int(s) >> 4 * i & 15) << 8 * i for i in range(4))
        for x, y, s in zip(a, b, selectors, strict=True)
    ]
    np.testing.assert_array_equal(run("prmt.b32", a, b, selectors), expected)


def test_bits_are_extracted():
    x, first, count = integers(), integers() % np.uint32(300), integers() % np.uint32(300)
    expected = [
        (int(v) >> int(i) % 256) % 2 ** (int(n) % 256)
        for v, i, n in zip(x, first, count, strict=True)
    ]
    np.testing.assert_array_equal(run("bfe.u32", x, first, count), expected)


def test_signed_bits_are_extracted():
    x, first, count = integers(), integers() % np.uint32(40), integers() % np.uint32(40)
    expected = [
        signed([(v >> int(i)) % 2 ** int(n)], int(n))[0] if n else 0
        for v, i, n in zip(signed(x), first, count, strict=True)
    ]
    got = run("bfe.s32", x.view(np.int32), first, count)
    np.testing.assert_array_equal(got, np.array(expected).astype(np.int32))


def test_floats_become_the_next_integers_towards_zero():
    x = np.append(floats(), np.float32([2**31, -(2**31), 2**31 - 128, -0.99, 1.99]))
    exact = [0 if np.isnan(v) else int(np.clip(float(v), -(2**31), 2**31 - 1)) for v in x]
    np.testing.assert_array_equal(run("cvt.rzi.s32.f32", x), exact)


@pytest.mark.parametrize("table", [0x80, 0x1E, 0x96, 0xE8, 0x01])
def test_logic_of_three_goes_by_its_table(table):
    a, b, c = integers(), integers(), integers()
    expected = np.zeros(a.size, np.uint32)
    for i in range(32):
        index = (a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)
        expected |= (np.uint32(table) >> index & 1) << np.uint32(i)
    np.testing.assert_array_equal(run("lop3.b32", a, b, c, np.uint32(table)), expected)


def test_choices_and_comparisons():
    a, b = floats(), floats()
    b[::5] = a[::5]
    ordered = {
        "eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y,
        "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
    }  # fmt: skip
    for how, holds in ordered.items():
        nan = [bool(np.isnan(x) or np.isnan(y)) for x, y in zip(a, b, strict=True)]
        exact = [holds(float(x), float(y)) for x, y in zip(a, b, strict=True)]
        expected = [e and not n for e, n in zip(exact, nan, strict=True)]
        np.testing.assert_array_equal(run(f"setp.{how}.f32", a, b), expected)
        expected = [e or n for e, n in zip(exact, nan, strict=True)]
        np.testing.assert_array_equal(run(f"setp.{how}u.f32", a, b), expected)
        x, y = integers(), integers()
        got = run(f"setp.{how}.s32", x.view(np.int32), y.view(np.int32))
        np.testing.assert_array_equal(
            got, [holds(*v) for v in zip(signed(x), signed(y), strict=True)]
        )
    which = RNG.integers(0, 2, a.size).astype(bool)
    got = run("selp.f32", a.view(np.uint32), b.view(np.uint32), which)
    expected = [
        x if w else y for x, y, w in zip(a.view(np.uint32), b.view(np.uint32), which, strict=True)
    ]
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(run("setp.eq.and.u32", x, x, which), which)


@pytest.mark.parametrize("name, dtype", [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_numbers_of_16_bits_are_compared_as_such(name, dtype):
    a, b = (x.view(np.uint16) for x in (floats(), floats()))
    b[::5] = a[::5]
    with np.errstate(invalid="ignore"):
        wide = [x.view(dtype).astype(np.float32) for x in (a, b)]
    for how in ("eq", "neu", "lt", "le", "gtu", "nan"):
        np.testing.assert_array_equal(
            run(f"setp.{how}.{name}", a, b), run(f"setp.{how}.f32", *wide)
        )


def test_a_funnel_shifts_two_numbers_as_one():
    low, high, by = integers(), integers(), integers()
    expected = [
        ((int(h) << 32 | int(x)) << int(n) % 32) >> 32 & 2**32 - 1
        for x, h, n in zip(low, high, by, strict=True)
    ]
    np.testing.assert_array_equal(run("shf.l.wrap.b32", low, high, by), expected)
