"""Settings for all tests.

JAX refuses to promote dtypes and ranks silently. The CPU counts as eight devices, for meshes of
them; what is not put on a mesh is on the first.
"""

import jax
import pytest

from tests.slow import speed

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what `tests.slow` lists."""
    for item in items:
        if mark := speed(item.nodeid.removeprefix("tests/")):
            item.add_marker(mark)
