"""Kernels of steps and of quantization, as compilers get them."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic.blocks import absmax_shape
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.triton import quantize as quantization
from tests.deviceless import kernels
from tests.triton import compiling
from tests.triton.standing_in import BY_TRITON

RULES = tuple(kernels.RULES)
CODECS = "power", "dynamic", "linear"
DTYPES = "bf16", "f32"
SHAPES = {"whole": kernels.SHAPE, "ragged": kernels.RAGGED}


@functools.cache
def of_step(rule, dtypes, shape="whole", codec="power", *, per_thread=None, **options):
    """The kernels of a step, by name. `options` are further ones of `kernels.step`."""
    case = kernels.step(
        rule,
        *kernels.DTYPES[dtypes],
        codec=codec,
        shape=SHAPES[shape],
        by=BY_TRITON.step,
        **options,
    )
    spec = case.fn.args[0]._replace(per_thread=per_thread)
    return _by_name(functools.partial(case.fn.func, spec), *case.args)


@functools.cache
def of_quantization(dtype):
    """The kernels of `quantize` and `dequantize` of the default codec, by name."""
    x = jax.ShapeDtypeStruct(kernels.SHAPE, kernels.DTYPES[dtype][0])
    codes = jax.ShapeDtypeStruct(kernels.SHAPE, jnp.uint8)
    absmax = jax.ShapeDtypeStruct(absmax_shape(kernels.SHAPE, 256), jnp.float32)
    codec = get_codec("power", True)

    def there(x):
        return quantization.quantize(x, None, block_size=256, codec=codec, keep_nonzero=False)

    def back(codes, absmax):
        return quantization.dequantize(
            codes, absmax, block_size=256, codec=codec, dtype=jnp.dtype(x.dtype)
        )

    return _by_name(there, x) | _by_name(back, codes, absmax)


def _by_name(function, *arguments):
    return {x.kernel.name: x.kernel for x in compiling.kernels(function, *arguments)}
