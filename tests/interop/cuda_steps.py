"""One step of bitsandbytes' CUDA kernels, in float64 NumPy: what an imported state goes on with.

Written from the description of the kernels and not from the library here, nor from bitsandbytes'
CPU build, whose quantizer and LAMB differ (`tests/peers/test_cpu_build.py` says how). Tensors are
flattened by their index; a checkpoint in storage order is put right before it comes here.

Roundings that the kernels make in float32 are not made, those to the parameter's dtype are. Where a
value is about as near to two codes, the kernel may have taken either: `allowed` judges codes.
"""

import math
from typing import NamedTuple

import numpy as np

QUANT_STATE = "__bnb_optimizer_quant_state__"

CPU_SLACK = 1.6e-5
"""The CPU build rounds `m / absmax` to one of 65536 places in [-1, 1] before it looks for a code:
off by half of 2 / 65535, and a little for float32."""


class Slots(NamedTuple):
    """The state of one parameter as numbers, in its shape. Lion has no `v`."""

    t: int
    m: np.ndarray
    v: np.ndarray | None
    block_size: int | None
    """Elements per scale; 0 is one scale per tensor, None is float32 state."""


class Stored(NamedTuple):
    """A slot after a step. `exact` is before rounding; the rest of a float32 slot is None."""

    exact: np.ndarray
    value: np.ndarray
    codes: np.ndarray | None
    absmax: np.ndarray | None


class Step(NamedTuple):
    """A parameter and its slots after a step, and what decided it.

    `decisive` is what Lion takes the sign of; `ratio` is how far LAMB's cap shortened the step.
    """

    p: np.ndarray
    m: Stored
    v: Stored | None = None
    decisive: np.ndarray | None = None
    ratio: float | None = None


# Reading a checkpoint


def decode(entry, shape):
    """The slots of one parameter, from `checkpoint["state"][i]` of any version."""
    entry = {**entry, **entry.get(QUANT_STATE, {})}
    m, block_size = _decode_slot(entry, 1, shape)
    v, _ = _decode_slot(entry, 2, shape) if "state2" in entry else (None, None)
    return Slots(int(entry["step"]), m, v, block_size)


def _decode_slot(entry, number, shape):
    codes = np.asarray(entry[f"state{number}"]).reshape(shape)
    if codes.dtype != np.uint8:
        return codes.astype(np.float64), None
    # From 0.36 to 0.41.0 the second map had 524 entries, of which the kernel had room for 256.
    table = np.asarray(entry[f"qmap{number}"], np.float64)[:256]
    if f"max{number}" in entry:  # tensor-wise; the scales of before are in `new_max`
        return table[codes] * np.float64(entry[f"max{number}"][0]), 0
    absmax = np.asarray(entry[f"absmax{number}"], np.float64)
    fitting = [size for size in (256, 2048) if len(absmax) == -(-codes.size // size)]
    return table[codes] * _spread(absmax, codes.size, fitting[0]).reshape(shape), fitting[0]


def _spread(absmax, size, block_size):
    """The scale of every element of a flat tensor."""
    return np.repeat(absmax, block_size or max(size, 1))[:size]


# Codes


def nearest_codes(y, table):
    """The code of the level nearest to each `y`, by looking at all levels; of two, the lower."""
    y = np.asarray(y, np.float64).ravel()
    parts = [
        np.abs(part[:, None] - table).argmin(axis=1)
        for part in np.array_split(y, 1 + y.size // 4096)
    ]
    return np.concatenate(parts).astype(np.uint8)


def with_sign_rule(codes, y, table):
    """What CUDA stores for first moments: a code whose level has the sign of what it stands for.

    Only 0 can have another sign than a value that was rounded to it. It counts as positive, so a
    small negative value gets the code below, and a small positive value stays 0.
    """
    other = np.signbit(table[codes]) != np.signbit(y)
    return np.where(other, np.where(y > 0, codes + 1, codes - 1), codes).astype(np.uint8)


def quantize(x, table, block_size, signed):
    """A slot as the kernels store it: `Stored` with codes and one scale per block.

    A block of zeros is divided by its scale all the same. That makes NaN, which has code 0, and the
    sign rule code 255 of it; the scale of 0 makes both harmless.
    """
    flat = np.asarray(x, np.float64).ravel()
    step = block_size or max(flat.size, 1)
    absmax = np.array([np.abs(flat[i : i + step]).max() for i in range(0, flat.size, step)])
    scale = _spread(absmax, flat.size, block_size)
    empty = scale == 0
    y = np.divide(flat, scale, out=np.zeros_like(flat), where=~empty)
    codes = np.where(empty, 255 if signed else 0, _codes_of(y, table, sign_rule=signed))
    codes = codes.astype(np.uint8).reshape(np.shape(x))
    return Stored(x, table[codes] * scale.reshape(np.shape(x)), codes, absmax)


def allowed(codes, stored, table, block_size, sign_rule, slack=2e-6):
    """Where `codes` are right for `stored.exact`, had that been off by `slack` of its scale.

    The default is for float32: a few roundings of the value and one of its scale, 2**-24 each, and
    a division that is not rounded correctly. Any code is right in a block of zeros.
    """
    exact = np.asarray(stored.exact, np.float64).ravel()
    scale = _spread(stored.absmax, exact.size, block_size)
    y = np.divide(exact, scale, out=np.zeros_like(exact), where=scale > 0)
    low, high = (_codes_of(y + d, table, sign_rule) for d in (-slack, slack))
    codes = np.asarray(codes).ravel()
    return ((codes >= low) & (codes <= high) | (scale == 0)).reshape(np.shape(stored.exact))


def _codes_of(y, table, sign_rule):
    codes = nearest_codes(y, table)
    return with_sign_rule(codes, y, table) if sign_rule else codes


# Steps


def lion32(
    p, g, slots, *, lr, betas, weight_decay=0.0, coupled=False, grad_scale=1.0, dtype=np.float32,
):  # fmt: skip
    """Lion with a float32 slot. `coupled` is weight decay as up to 0.49.2, in the gradient."""
    p, g = _rounded(p, dtype), _rounded(grad_scale * _wide(g), dtype)
    if weight_decay > 0 and coupled:
        g = _rounded(g + weight_decay * p, dtype)
    elif weight_decay > 0:
        p = _rounded(p * (1 - lr * weight_decay), dtype)
    decisive, m = _lion_moments(g, slots.m, betas)
    p = _rounded(p - lr * _sign(decisive), dtype)
    return Step(p, Stored(m, m, None, None), decisive=decisive)


def lion8(
    p, g, slots, *, lr, betas, table, weight_decay=0.0, grad_scale=1.0, block_size=256,
    dtype=np.float32,
):  # fmt: skip
    """Lion with an 8-bit slot; `table` is its `qmap1`. Weight decay was decoupled at all times."""
    p, g = _rounded(p, dtype), grad_scale * _wide(g)
    if weight_decay > 0:
        p = _rounded(p * (1 - lr * weight_decay), dtype)
    decisive, m = _lion_moments(g, slots.m, betas)
    p = _rounded(p - _rounded(lr * _sign(decisive), dtype), dtype)
    return Step(p, quantize(m, _wide(table), block_size, signed=True), decisive=decisive)


def lamb32(
    p, g, slots, *, lr, betas, eps=1e-8, weight_decay=0.0, max_unorm=1.0, grad_scale=1.0,
    dtype=np.float32,
):  # fmt: skip
    """What bitsandbytes calls LAMB: Adam whose bias-corrected update has a norm that is capped.

    The cap is `max_unorm` times the norm of the parameter, none if it is 0. Weight decay comes last
    and is not in that norm. A parameter of zeros never moves.
    """
    p, g = _rounded(p, dtype), grad_scale * _wide(g)
    (b1, b2), t = betas, slots.t + 1
    m, v = b1 * slots.m + (1 - b1) * g, b2 * slots.v + (1 - b2) * g * g
    c1, c2 = 1 - b1**t, math.sqrt(1 - b2**t)
    update_norm = np.linalg.norm((m / c1) / (np.sqrt(v) / c2 + eps))
    cap = max_unorm * np.linalg.norm(p)
    ratio = cap / update_norm if max_unorm > 0 and update_norm > cap else 1.0
    p = _rounded(p - ratio * lr * (c2 / c1) * m / (np.sqrt(v) + eps * c2), dtype)
    if weight_decay > 0:
        p = _rounded(p * (1 - lr * weight_decay), dtype)
    return Step(p, Stored(m, m, None, None), Stored(v, v, None, None), ratio=float(ratio))


def adam32(p, g, slots, **hyperparameters):
    """Adam and AdamW, which are one over there: LAMB without the cap on the norm of a step.

    Both decouple the decay. They differ in its default, 0 and 1e-2.
    """
    return lamb32(p, g, slots, max_unorm=0.0, **hyperparameters)


def adam8(p, g, slots, *, tables, block_size=256, **hyperparameters):
    """Adam and AdamW with 8-bit slots: a step goes by the moments before they are encoded."""
    return lamb8(
        p, g, slots, tables=tables, block_size=block_size, max_unorm=0.0, **hyperparameters
    )


def lamb8(p, g, slots, *, tables, block_size=256, **hyperparameters):
    """LAMB with 8-bit slots as it would be: of decoded slots a step, whose slots are encoded.

    No release has this on CUDA (tensor-wise up to 0.49.2, with `block_size=0`, it had errors of its
    own; later ones refuse), so this is a definition. `tables` are `qmap1` and `qmap2`.
    """
    step = lamb32(p, g, slots, **hyperparameters)
    signed, unsigned = (_wide(table)[:256] for table in tables)
    return step._replace(
        m=quantize(step.m.exact, signed, block_size, signed=True),
        v=quantize(step.v.exact, unsigned, block_size, signed=False),
    )


def _lion_moments(g, m, betas):
    b1, b2 = betas
    return b1 * m + (1 - b1) * g, b2 * m + (1 - b2) * g


def _sign(x):
    """The kernels' sign: 0 of NaN."""
    return np.where(np.isnan(x), 0.0, np.sign(x))


def _wide(x):
    return np.asarray(x, np.float64)


def _rounded(x, dtype):
    """Rounded to what the parameter's dtype has; not at all for None."""
    return _wide(x) if dtype is None else _wide(x).astype(dtype).astype(np.float64)
