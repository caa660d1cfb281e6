"""The GPUs of this process."""

import functools
from typing import Any

import jax


@functools.cache
def devices(platform: str) -> list[Any]:
    """Those of a platform, by JAX's name of it: "cuda" or "rocm"; none if there are none."""
    try:
        return jax.devices(platform)
    except RuntimeError:
        return []
