"""Numbers of one type as numbers of another."""

import numpy as np

from tests.emulated import rounding
from tests.emulated.ptx import BITS
from tests.emulated.table import Operation, Table

TABLE = Table()

_NARROW = {
    "bf16": (rounding.to_bfloat16, rounding.from_bfloat16),
    "f16": (rounding.to_float16, rounding.from_float16),
}


@TABLE.enter("cvt")
def _convert(name, modifiers):
    *how, to, of = modifiers
    if to in ("bf16x2", "f16x2") and (how, of) == (["rn"], "f32"):
        narrow, _ = _NARROW[to.removesuffix("x2")]
        half = np.uint32(16)
        return Operation(
            ("f32", "f32"),
            lambda high, low: narrow(high).astype(np.uint32) << half | narrow(low),
        )
    if to in _NARROW and (how, of) == (["rn"], "f32"):
        return Operation(("f32",), _NARROW[to][0])
    if of in _NARROW and (how, to) == ([], "f32"):
        return Operation(("u16",), _NARROW[of][1])
    if to == "f32" and how == ["rn"] and of[0] in "us" and BITS[of] <= 32:
        return Operation((of,), lambda x: x.astype(np.float32))
    if (how, to, of) == (["rzi"], "s32", "f32"):
        return Operation(("f32",), _truncated)
    if to[0] in "us" and of[0] in "us" and not how:
        return Operation(
            (of,), lambda x: x.astype(f"{'i' if to[0] == 's' else 'u'}{BITS[to] // 8}")
        )
    raise ValueError(modifiers)


def _truncated(x):
    """As an integer towards zero, or the nearest that there is; NaN is 0."""
    wide = np.where(np.isnan(x), 0, np.clip(x.astype(np.float64), -(2.0**31), 2.0**31 - 1))
    return np.trunc(wide).astype(np.int32)


@TABLE.enter("cvta")
def _address(name, modifiers):
    """Global memory has the same addresses as generic ones."""
    if modifiers not in (("to", "global", "u64"), ("global", "u64")):
        raise ValueError(modifiers)
    return Operation(("u64",), lambda x: x)
