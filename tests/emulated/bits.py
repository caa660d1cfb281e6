"""Logic, shifts, bytes and choices."""

import numpy as np

from tests.emulated.ptx import BITS
from tests.emulated.rounding import WIDENED
from tests.emulated.table import Operation, Table, as_bits, type_of

TABLE = Table()


@TABLE.enter("and", "or", "xor", "not")
def _logic(name, modifiers):
    functions = dict(zip(("and", "or", "xor"), _LOGIC, strict=True), **{"not": np.invert})
    return Operation((as_bits(type_of(modifiers)),) * (1 if name == "not" else 2), functions[name])


_LOGIC = np.bitwise_and, np.bitwise_or, np.bitwise_xor


@TABLE.enter("lop3")
def _logic_of_three(name, modifiers):
    if modifiers != ("b32",):
        raise ValueError(modifiers)

    def logic(a, b, c, table):
        result = np.zeros((), np.uint32)
        for i in range(8):  # by the bits of `a`, `b` and `c`
            x, y, z = (v if i & bit else ~v for v, bit in ((a, 4), (b, 2), (c, 1)))
            result = result | np.where(
                table >> np.uint32(i) & np.uint32(1), x & y & z, np.uint32(0)
            )
        return result

    return Operation(("u32",) * 4, logic)


@TABLE.enter("shl", "shr")
def _shift(name, modifiers):
    type_ = type_of(modifiers)
    signed, bits = type_[0] == "s" and name == "shr", BITS[type_]
    function = np.left_shift if name == "shl" else np.right_shift

    def shift(x, by):
        result = function(x, np.minimum(by, np.uint32(bits - 1)).astype(x.dtype))
        return result if signed else np.where(by < bits, result, x.dtype.type(0))

    return Operation((type_ if signed else as_bits(type_), "u32"), shift)


@TABLE.enter("shf")
def _funnel(name, modifiers):
    if modifiers != ("l", "wrap", "b32"):
        raise ValueError(modifiers)

    def funnel(low, high, by):
        both = high.astype(np.uint64) << np.uint64(32) | low
        return (both << (by & np.uint32(31)).astype(np.uint64) >> np.uint64(32)).astype(np.uint32)

    return Operation(("u32",) * 3, funnel)


@TABLE.enter("bfe")
def _extract(name, modifiers):
    (type_,) = modifiers
    wide = {"u32": np.uint64, "s32": np.int64}[type_]

    def extract(x, first, count):
        # What is beyond the number reads as zeros, or as its sign.
        first, count = (np.minimum(n & np.uint32(255), np.uint32(32)) for n in (first, count))
        moved = x.astype(wide) >> first.astype(wide)
        if type_ == "u32":
            return (moved & ((wide(1) << count) - wide(1))).astype(np.uint32)
        rest = wide(64) - count.astype(wide)
        return np.where(count == 0, wide(0), moved << rest % 64 >> rest % 64).astype(np.int32)

    return Operation((type_, "u32", "u32"), extract)


@TABLE.enter("prmt")
def _permute(name, modifiers):
    if modifiers != ("b32",):
        raise ValueError(modifiers)

    def permute(low, high, selectors):
        both, result = high.astype(np.uint64) << np.uint64(32) | low, np.zeros((), np.uint32)
        for i in range(4):
            selector = selectors >> np.uint32(4 * i)
            place = (selector & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = (both >> place).astype(np.uint8)
            sign = (byte.view(np.int8) >> 7).view(np.uint8)
            byte = np.where(selector & np.uint32(8), sign, byte)
            result = result | byte.astype(np.uint32) << np.uint32(8 * i)
        return result

    return Operation(("u32",) * 3, permute)


@TABLE.enter("selp")
def _choice(name, modifiers):
    type_ = as_bits(type_of(modifiers))
    return Operation((type_, type_, "pred"), lambda a, b, which: np.where(which, a, b))


_COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip


@TABLE.enter("setp")
def _comparison(name, modifiers):
    how, *combined, type_ = modifiers
    is_float = type_ in ("f32", *WIDENED)
    unordered = how.endswith("u") and is_float
    function = _COMPARISONS.get(how[:2] if unordered else how)
    if combined not in ([], ["and"], ["or"], ["xor"]) or type_ not in _COMPARED:
        raise ValueError(modifiers)
    widen = WIDENED.get(type_, lambda x: x)
    combine = dict(zip(("and", "or", "xor"), _LOGIC, strict=True)).get(*combined or [None])

    def compare(a, b, other=None):
        a, b = widen(a), widen(b)
        nan = (a != a) | (b != b)
        if how in ("nan", "num"):
            result = nan if how == "nan" else ~nan
        else:
            result = function(a, b) & ~nan | nan if unordered else function(a, b) & ~nan
        return result if combine is None else combine(result, other)

    if function is None and (how not in ("nan", "num") or not is_float):
        raise ValueError(how)
    given = "u16" if type_ in WIDENED else type_
    return Operation((given, given, "pred")[: 2 + len(combined)], compare)


_COMPARED = "f32", *WIDENED, *(f"{kind}{bits}" for kind in "bus" for bits in (16, 32, 64))
