"""Prints generated kernels: `python -m tests.triton dequantize`, or a rule such as `lion`."""

import functools
import sys

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.tiled import quantize as tiled
from pallas_kernels.triton import launch
from tests.kernels.test_mosaic import RULES, Leaf
from tests.steps import on_arrays
from tests.triton.compiling import kernels
from tests.triton.standing_in import BY_TRITON

ARRAYS = ("quantize", "dequantize")


def sources(name):
    """The kernels of a step of a rule, or of an array, in bfloat16 and of whole tiles."""
    shape = (32, 256)
    if name in RULES:
        leaf = Leaf(name, shape=shape, p="bfloat16", g="bfloat16")
        call, arrays = functools.partial(on_arrays(BY_TRITON.step), leaf.spec), leaf.arrays()
    else:
        static = dict(block_size=shape[1], codec=get_codec("power", True))
        if name == "quantize":
            static |= dict(key=None, keep_nonzero=False)
            arrays = (jax.ShapeDtypeStruct(shape, jnp.bfloat16),)
        else:
            static |= dict(dtype=jnp.dtype("bfloat16"))
            arrays = jax.ShapeDtypeStruct(shape, "uint8"), jax.ShapeDtypeStruct((32, 1), "float32")
        call = functools.partial(getattr(tiled, name), launch.BACKEND, **static)
    return [x.kernel.source for x in kernels(call, *arrays)]


def main(arguments):
    """Prints what is asked for, or what can be asked for."""
    if len(arguments) != 1 or arguments[0] not in (*RULES, *ARRAYS):
        sys.exit(f"Usage: python -m tests.triton {'|'.join((*RULES, *ARRAYS))}")
    print("\n".join(sources(*arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
