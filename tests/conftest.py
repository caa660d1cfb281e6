"""Settings for all tests.

JAX refuses to promote dtypes and ranks silently. The CPU counts as eight devices, for meshes of
them; what is not put on a mesh is on the first.
"""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)
