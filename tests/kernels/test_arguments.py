"""Wrong arguments of `quantize` and `dequantize` say what was given and what is needed."""

import jax.numpy as jnp
import pytest

from pallas_kernels import dequantize, quantize

CODECS = "codec.*power.*dynamic|power.*dynamic.*codec"


@pytest.mark.parametrize("block_size", [0, -256, 16, 100, 300, 8192, 256.0, "256", True])
def test_block_sizes_that_are_not_allowed(block_size):
    with pytest.raises((ValueError, TypeError), match="block_size"):
        quantize(jnp.ones(512), block_size=block_size)
    with pytest.raises((ValueError, TypeError), match="block_size"):
        dequantize(jnp.zeros(512, jnp.uint8), jnp.ones(2), block_size=block_size)


@pytest.mark.parametrize("codec", ["nf4", "Power", "", None, 3])
def test_unknown_codecs(codec):
    with pytest.raises((ValueError, TypeError), match=CODECS):
        quantize(jnp.ones(512), codec=codec)
    with pytest.raises((ValueError, TypeError), match=CODECS):
        dequantize(jnp.zeros(512, jnp.uint8), jnp.ones(2), codec=codec)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool", "uint8"])
def test_quantize_refuses_what_is_not_floating(dtype):
    with pytest.raises(TypeError, match=dtype):
        quantize(jnp.ones(512, dtype))


@pytest.mark.parametrize("dtype", ["int8", "int32", "float32"])
def test_dequantize_refuses_codes_that_are_not_uint8(dtype):
    with pytest.raises(TypeError, match="(?s)codes.*uint8|uint8.*codes"):
        dequantize(jnp.zeros(512, dtype), jnp.ones(2))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (512,)])
def test_dequantize_refuses_scales_of_another_block_size(shape):
    with pytest.raises(ValueError, match="absmax") as error:
        dequantize(jnp.zeros(512, jnp.uint8), jnp.ones(shape))
    assert str((2,)) in str(error.value)  # the shape that is needed
