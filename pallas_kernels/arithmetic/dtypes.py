"""Which dtype a step computes in, and which it returns."""

import jax
import jax.numpy as jnp


def promote(*dtypes):
    """The dtype that holds all of these, also where users switched JAX's promotion off."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def compute_dtype(*dtypes):
    """float32, or float64 for float64 values."""
    return promote(jnp.float32, *dtypes)
