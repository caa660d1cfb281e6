"""One parameter's entry in a bitsandbytes checkpoint: what it holds, in numbers.

Every version of the entry is understood: nested (0.49.2 and later) or flat, with blocks of 256 or
2048 elements or one scale per tensor. What is damaged is refused by name.

**Codes.** Over there the codes of a map rise with its values: of the signed one, 127 is zero and
255 is 1. Here a signed code counts from zero in both directions, in two's complement: 0 is zero and
128 is 1. Unsigned codes are the same. Between the two are `our_codes` and `their_codes`, and no
other way.
"""

from typing import NamedTuple

import numpy as np

from optax_lamblion._checkpoints.bitsandbytes.arrays import CAP_NORM, slots_of
from optax_lamblion._state.layout import Layout
from pallas_kernels.arithmetic.blocks import BLOCK_SIZES, absmax_shape
from pallas_kernels.arithmetic.codecs import decode, get_codec

MOMENTS = {"mu": "state1", "nu": "state2"}
_BLOCK_SIZES = (256, 2048)  # of 0.44 and later, and before
# What an entry may hold beside its moments; the last row is room to work in, and says nothing.
_KNOWN = {"step", "gnorm_vec"} | {
    f"{name}{i}" for name in ("state", "qmap", "absmax", "max") for i in (1, 2)
}
_SCRATCH = {CAP_NORM, "new_max1", "new_max2"}


class Moment(NamedTuple):
    """A moment of a parameter, as it was saved.

    - `x`: float32 in the parameter's shape, or uint8 codes of bitsandbytes.
    - `absmax`: the scales of codes, one per block.
    - `levels`: the values of the 256 codes, as saved.
    - `layout`: that of codes, or None if no codec of this package has their values.
    - `signed`: whether their map has negative values.
    """

    x: np.ndarray
    absmax: np.ndarray | None = None
    levels: np.ndarray | None = None
    block_size: int | None = None
    layout: Layout | None = None
    signed: bool = True

    def values(self):
        """The moment in float32."""
        if self.levels is None or self.absmax is None:
            return self.x.astype(np.float32)
        size = self.x.size
        scale = np.repeat(self.absmax, self.block_size or max(size, 1))[:size]
        return self.levels[self.x] * scale.reshape(self.x.shape)


class Entry(NamedTuple):
    """What a checkpoint has of a parameter."""

    step: int
    moments: dict[str, Moment]
    gnorm_history: np.ndarray | None


def unpack(where, entry, names, block_size) -> Entry:
    """The entry of a parameter, checked.

    Args:
      where: What to call the entry in messages: `"state.3 (dense/kernel)"`.
      entry: A dict of arrays and numbers.
      names: The moments that are needed, `"mu"` and perhaps `"nu"`.
      block_size: Elements per scale; None asks the number of scales.
    """
    entry = slots_of(entry)
    unknown = sorted(map(str, entry.keys() - _KNOWN - _SCRATCH))
    if unknown:
        raise ValueError(
            f"`{where}` has {unknown[0]!r}, which bitsandbytes' Lion, LAMB and AdamW do not save. "
            "Is this the checkpoint of another optimizer?"
        )
    needed = [MOMENTS[name] for name in names]
    if "state2" in entry and "state2" not in needed:
        raise ValueError(
            f"`{where}` has `state2`, a second moment, which Lion does not keep. It is from "
            "AdamW, Adam or LAMB: pass a `tx` with `adamw` or `lamb` in it."
        )
    step = _get(where, entry, "step")
    is_number = isinstance(step, int | float)
    if not is_number or not 0 <= step < 2**31 or step != int(step):
        raise ValueError(f"`{where}.step` must be a whole number below 2**31, got {step!r}.")
    history = entry.get("gnorm_vec")
    if history is not None:
        history = _checked(f"{where}.gnorm_vec", history, (100,))
    moments = {
        name: _moment(where, entry, key[-1], block_size)
        for name, key in zip(names, needed, strict=True)
    }
    return Entry(int(step), moments, history)


def _moment(where, entry, i, block_size):
    x = _get(where, entry, f"state{i}")
    name = f"{where}.state{i}"
    if x.dtype != np.uint8:
        return Moment(_checked(name, x, x.shape, not_negative=i == "2").astype(np.float32))
    signed = i == "1"
    levels, layout_is_known = _levels(where, _get(where, entry, f"qmap{i}"), signed)
    if f"absmax{i}" in entry:
        key = f"absmax{i}"
        block = block_size or _block_size(f"{where}.{key}", x, entry[key])
        count = -(-x.size // block)
    else:
        key, block, count = f"max{i}", None, 1
    absmax = _checked(f"{where}.{key}", _get(where, entry, key), (count,), not_negative=True)
    known = layout_is_known and block in (*BLOCK_SIZES, None)
    layout = Layout("dynamic", block) if known else None
    return Moment(x, absmax.astype(np.float32), levels, block, layout, signed)


def _get(where, entry, key):
    if key not in entry:
        has = ", ".join(map(repr, entry)) or "nothing"
        raise ValueError(f"`{where}` lacks {key!r}; it has {has}. The checkpoint is incomplete.")
    return entry[key]


def _block_size(where, x, absmax):
    """How many elements share a scale, from the number of scales."""
    fits = [b for b in _BLOCK_SIZES if np.shape(absmax) == (-(-x.size // b),)]
    if not fits:
        raise ValueError(
            f"`{where}` has shape {np.shape(absmax)}, which fits neither blocks of 256 nor of 2048 "
            f"elements of the {x.size} that it belongs to. If it is of other blocks, pass their "
            "`block_size`."
        )
    return fits[0]


def _levels(where, saved, signed):
    """The values of 256 codes, and whether they are those of the codec `"dynamic"`."""
    name = f"{where}.qmap{1 if signed else 2}"
    if not signed and saved.shape == (524,):
        # 0.36 to 0.41.0 saved a longer map, of which its kernels used the first 256 values.
        return _checked(name, saved[:256], (256,)).astype(np.float32), False
    levels = _checked(name, saved, (256,)).astype(np.float32)
    theirs = their_map(signed)
    # What makes the map in PyTorch differs by so much between processors.
    off = np.abs(levels - theirs) > 2 * np.spacing(np.abs(theirs))
    if off.any():
        code = int(np.argmax(off))
        raise ValueError(
            f"`{name}` is not the map of bitsandbytes' optimizers: code {code} means "
            f"{levels[code]:.6g} in it, and {theirs[code]:.6g} there. The file is damaged, or from "
            "another program."
        )
    return levels, True


def _checked(name, x, shape, not_negative=False):
    """Floating-point numbers of that shape that are finite."""
    x = np.asarray(x)
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise ValueError(f"`{name}` has dtype {x.dtype}; it needs to be floating point.")
    if x.shape != tuple(shape):
        raise ValueError(f"`{name}` has shape {x.shape}; it needs to be {tuple(shape)}.")
    if not np.isfinite(x.astype(np.float32)).all():
        raise ValueError(
            f"`{name}` has numbers that are NaN or infinite: the run had diverged before it was "
            "saved. Take an earlier checkpoint."
        )
    if not_negative and (x < 0).any():
        raise ValueError(f"`{name}` has negative numbers, which it cannot have: it is damaged.")
    return x


_ZERO = 127
"""The code of zero in bitsandbytes' signed map."""


def our_codes(codes, signed):
    """The codes here of what has these codes in bitsandbytes' map; uint8 wraps around."""
    return np.asarray(np.subtract(codes, _ZERO, dtype=np.uint8)) if signed else codes


def their_codes(codes, signed):
    """The other way: what bitsandbytes' map has for these codes."""
    return np.asarray(np.add(codes, _ZERO, dtype=np.uint8)) if signed else codes


def their_map(signed):
    """The values of bitsandbytes' codes, as its optimizers save them."""
    codes = our_codes(np.arange(256, dtype=np.uint8), signed)
    return np.asarray(decode(get_codec("dynamic", signed), codes))


def our_absmax(moment):
    """The scales in the shape that a state here gives them."""
    return moment.absmax.reshape(absmax_shape(moment.x.shape, moment.block_size))


def adapts(adapt, path, x):
    """Whether `adapt` does anything to a parameter's arrays, of which `x` is one."""
    x = np.asarray(x)
    moved = np.asarray(adapt(path, x))
    a, b = x.__array_interface__, moved.__array_interface__
    return a["data"] != b["data"] or x.shape != moved.shape or x.strides != moved.strides
