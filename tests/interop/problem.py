"""The parameters and gradients that the committed checkpoints come from: the same on any machine.

Nothing is drawn and nothing is stored. A hash of name, step and element gives whole numbers, and
every value is one of at most eight bits times a power of two: exact in bfloat16 and in float32.
"""

import zlib

import numpy as np

STEPS = 5
"""Steps before a checkpoint was saved; `gradients(STEPS)` is what the next one would get."""

SHAPES = {
    "matrix": (64, 96),
    "ragged": (4097,),
    "small": (33,),
    "transposed": (96, 64),
    "narrow": (12, 16),
}
NOT_CONTIGUOUS = ("transposed", "narrow")
"""What PyTorch has as the `.t()` of another tensor."""

ZERO_BLOCK = slice(256, 512)
"""Elements of "matrix" whose gradient is always 0: a block of zeros."""


def _bytes(name, step, size):
    """Four random bytes for every element: int64[4, size]."""
    x = np.arange(size, dtype=np.uint32) + np.uint32(zlib.crc32(f"{name} {step}".encode()))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x.view(np.uint8).reshape(size, 4).T.astype(np.int64)


def _bell(name, step, size):
    """Whole numbers from -255 to 255, bell-shaped around 0 with a standard deviation of 74."""
    return (_bytes(name, step, size).sum(axis=0) - 510) // 2


def gradient(name, step):
    """The gradient of step `step`, from 0: its elements have scales from 2**-12 to 2**3."""
    size = int(np.prod(SHAPES[name]))
    scale = _bytes(f"scale of {name}", 0, size)[:2].sum(axis=0) // 32 - 12
    g = np.ldexp(_bell(name, step, size).astype(np.float32), scale - 7)
    if name == "matrix":
        g[ZERO_BLOCK] = 0
    return g.reshape(SHAPES[name])


def gradients(step):
    """The gradients of all parameters, by name."""
    return {name: gradient(name, step) for name in SHAPES}


def params():
    """The parameters, which are the same before every step: no state here depends on them."""
    sizes = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    return {
        name: np.ldexp(_bell(name, "start", size).astype(np.float32), -7).reshape(SHAPES[name])
        for name, size in sizes.items()
    }
