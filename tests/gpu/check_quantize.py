"""The kernels of `quantize` and `dequantize` against XLA and against looking at all levels."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from pallas_kernels import get_codec
from pallas_kernels.arithmetic.hashing import mix, uniform
from pallas_kernels.mosaic import quantize as mosaic
from pallas_kernels.mosaic.tile import INTERPRET
from tests import oracles
from tests.gpu.comparing import CUBE_TIE, EIGHTH_TIE, ULP
from tests.kernels.codec_judge import level_error

SHAPES = ((4096,), (9, 512), (4099,), (5, 7, 11, 64), (50001, 77))
DTYPES = ("float32", "bfloat16", "float16")


def checks(run, implementation="mosaic"):
    """`(name, function)` for each kind of codes."""
    kinds = list(itertools.product(oracles.CODECS, (True, False), (None, 7)))
    for i, (codec, signed, seed) in enumerate(kinds):
        shape, dtype = SHAPES[i % len(SHAPES)], DTYPES[i % len(DTYPES)]
        block = (256, 64, 1024, 32, 512, 128)[i % 6]
        if run.interpret and (math.prod(shape) > 2**17 or run.tiny and i > 1):
            continue
        how = codec, signed, seed
        words = codec, "signed" if signed else "unsigned", f"seed={seed}", dtype, f"block={block}"
        yield (
            f"quantize {'x'.join(map(str, shape))} {' '.join(words)}",
            functools.partial(_quantize, run, implementation, shape, dtype, block, *how),
        )
    for i, kind in enumerate(itertools.product(oracles.CODECS, (True, False))):
        codec, signed = kind
        shape, dtype = SHAPES[-1 - i % len(SHAPES)], DTYPES[i % len(DTYPES)]
        if run.interpret and (math.prod(shape) > 2**17 or run.tiny and i > 1):
            continue
        yield (
            f"dequantize {'x'.join(map(str, shape))} {codec} {signed=} {dtype}",
            functools.partial(_dequantize, run, implementation, shape, dtype, *kind),
        )


def _quantize(run, implementation, shape, dtype, block, codec, signed, seed):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape) * rng.lognormal(size=shape)
    x.reshape(-1)[:5] = 0, np.nan, np.inf, -np.inf, -0.0
    x.reshape(-1)[block : 2 * block] = 0
    x = jnp.asarray(x, dtype)
    options = dict(block_size=block, codec=codec, signed=signed, seed=seed)
    if run.interpret:
        key = None if seed is None else mix(jnp.uint32(seed))
        codes, absmax = jax.jit(
            lambda x: mosaic.quantize(
                x, key, block, get_codec(codec, signed), False, interpret=INTERPRET
            )
        )(x)
    else:
        codes, absmax = pallas_kernels.quantize(x, implementation=implementation, **options)
    expected, expected_absmax = pallas_kernels.quantize(x, implementation="xla", **options)
    codes, expected, absmax = map(np.asarray, (codes, expected, absmax))
    assert codes.dtype == np.uint8 and codes.shape == shape
    np.testing.assert_array_equal(absmax, expected_absmax)  # a maximum has no rounding
    values = np.asarray(x.astype(jnp.float32), np.float64)
    values = np.where(np.isfinite(values), values, 0)
    values = values if signed else np.maximum(values, 0)
    y = oracles.normalize(values, absmax, block)
    u = 0.5 if seed is None else np.asarray(_uniform(mix(jnp.uint32(seed)), shape), np.float64)
    tie = (CUBE_TIE if signed else EIGHTH_TIE) if codec == "power" else 0.0
    predicted, distance, gap = oracles.turned(y, u, codec, signed)
    if codec == "dynamic" and signed:  # the sign rule stores no negative value as zero
        predicted = np.where((y < 0) & (predicted == 0), np.uint8(255), predicted)
    off = codes != predicted
    places = (oracles.ranks(x, codec, signed) for x in (codes, predicted))
    beside = np.abs(np.subtract(*places)) == 1
    # The level, the quotient, and where rounding turns between two levels.
    slack = (level_error(codec, signed) + 4 * ULP) * np.abs(y) + 4 * ULP * gap
    wrong = off & ~(beside & (distance <= slack + tie * gap))
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} codes wrong, first at {np.argwhere(wrong)[:3].tolist()}: "
        f"y={y[wrong][:3]}, kernel {codes[wrong][:3]}, XLA {expected[wrong][:3]}"
    )
    differ = codes != expected
    most = 8 + (4 * tie + 4e-4) * codes.size
    assert differ.sum() <= most, f"{differ.sum()} of {codes.size} codes differ from XLA's"
    brute = {}
    if seed is None:
        sample = slice(0, 20_000)
        nearest, ties = oracles.nearest(
            y.reshape(-1)[sample], codec, signed, tie=max(2 * tie, 1e-4)
        )
        wrong = (codes.reshape(-1)[sample] != nearest) & ~ties
        assert not wrong.any(), f"{wrong.sum()} codes are not the nearest of all levels"
        brute = {"looked_at": nearest.size, "ties": int(ties.sum())}
    worst = float(np.max(distance[off] / gap[off], initial=0))
    return brute | {"codes_that_differ": int(differ.sum()), "worst_tie": worst}


_uniform = jax.jit(uniform, static_argnums=1)


def _dequantize(run, implementation, shape, dtype, codec, signed):
    rng = np.random.default_rng(2)
    codes = jnp.asarray(rng.choice(oracles.written(codec, signed), shape))
    scales = rng.lognormal(size=oracles.absmax_shape(shape, 256))
    absmax = jnp.asarray(scales, jnp.float32)
    options: dict[str, Any] = dict(codec=codec, signed=signed, dtype=jnp.dtype(dtype))
    if run.interpret:
        x = jax.jit(
            lambda codes, absmax: mosaic.dequantize(
                codes, absmax, 256, get_codec(codec, signed), jnp.dtype(dtype), interpret=INTERPRET
            )
        )(codes, absmax)
    else:
        x = pallas_kernels.dequantize(codes, absmax, implementation=implementation, **options)
    general = pallas_kernels.dequantize(codes, absmax, implementation="xla", **options)
    assert x.dtype == dtype and x.shape == shape
    exact = oracles.decode(np.asarray(codes), np.asarray(absmax), 256, codec, signed)
    info = jnp.finfo(dtype)
    bound = (level_error(codec, signed) + ULP + float(info.eps) / 2) * np.abs(exact)
    bound += float(info.smallest_subnormal) / 2
    seen = {}
    for name, value in (("kernel", x), ("xla", general)):
        error = np.abs(np.asarray(value.astype(jnp.float32), np.float64) - exact)
        off = ~(error <= bound)
        assert not off.any(), f"{name}: {off.sum()} values off, first {np.argwhere(off)[:3]}"
        share = np.divide(error, bound, out=np.zeros(shape), where=bound > 0)
        seen[f"{name}_worst"] = float(share.max())
    return seen
