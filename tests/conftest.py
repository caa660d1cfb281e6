"""Settings for all tests: JAX refuses to promote dtypes and ranks silently."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
