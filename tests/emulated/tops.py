"""The largest element of a block is stored as the largest level, however a reciprocal errs.

Of second moments it would be the worst to lose: the step divides by it.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import get_codec
from tests import oracles
from tests.emulated import programs
from tests.kernels.codec_judge import kind_id

BLOCKS, BLOCK = 64, 256


def check_step(case, kernel):
    """Of what a step has stored."""
    for slot, codes, absmax in zip(case.rule.slots, kernel.slots, kernel.absmaxes, strict=True):
        codes, absmax = np.asarray(codes).reshape(-1), np.asarray(absmax).reshape(-1)
        blocks = oracles.block_of(codes.size, case.block)
        size = np.abs(oracles.levels(case.codec, slot.signed))[codes]
        largest = np.zeros(absmax.size)
        np.maximum.at(largest, blocks, size)
        _check(case.codec, slot.signed, largest[absmax > 0])


def _check(codec, signed, largest):
    """The largest level of each block, which is 1, or -0.99 of a map that has no -1."""
    levels = oracles.levels(codec, signed)
    least = min(1.0, -levels.min()) if signed else 1.0
    assert (largest >= least).all(), f"largest levels of blocks: {np.unique(largest)}"


def _largest(codec, signed, seed):
    """`quantize` of blocks whose largest elements have all kinds of mantissas."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((BLOCKS, BLOCK))).astype(np.float32) * np.float32(0.1)
    x[:, 7] = top = np.nextafter(np.linspace(1, 2, BLOCKS, dtype=np.float32), np.float32(2))
    key = None if seed is None else jnp.uint32(seed)
    codes, absmax = _quantize(codec, signed)(jnp.asarray(x), key)
    np.testing.assert_array_equal(np.asarray(absmax).reshape(-1), top)
    stored = oracles.levels(codec, signed)[np.asarray(codes)]
    _check(codec, signed, stored[:, 7])
    assert (stored[:, :7] < 0.9).all()
    return {"blocks": BLOCKS}


@functools.cache
def _quantize(codec, signed):
    options = dict(block_size=BLOCK, codec=get_codec(codec, signed), keep_nonzero=False)
    return jax.jit(functools.partial(programs.implementation().arrays.quantize, **options))


CHECKS = {
    f"largest of a block/{codec} {kind_id(signed)}/{seed=}": functools.partial(
        _largest, codec, signed, seed
    )
    for codec, signed, seed in itertools.product(oracles.CODECS, (True, False), (None, 1, 2))
}
