"""Zeros in host memory, made without a state of them on the device."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optax_lamblion._paging.memory import HOST, KIND, is_traced, zeros


class Filler:
    """Makes zeros in host memory, and never more than a few pages of them on the device.

    Args:
      page_bytes: The size of a page.
    """

    def __init__(self, page_bytes):
        self._page_bytes = page_bytes
        self._last: Any = None

    def zeros(self, like, shape, dtype, sharding=None):
        """Zeros in host memory, where the devices of the parameter `like` see it.

        `sharding` is a `NamedSharding` on its mesh, if it has one.
        """
        if not is_traced():
            if sharding is None:
                sharding = getattr(like, "sharding", None) or jnp.zeros(()).sharding
            return zeros(sharding.with_memory_kind(KIND), shape, dtype)
        # A compiled program makes a constant on the device. It goes to the host page by page, and
        # one after the other: all pages at once would be the whole state.
        zero = jnp.zeros((), dtype)
        if self._last is not None:
            zero, _ = lax.optimization_barrier((zero, self._last))
        if jax.typeof(like).sharding.mesh.size > 1:  # XLA divides it, if nobody cuts it
            x = jnp.broadcast_to(zero, shape)
            x = x if sharding is None else jax.sharding.reshard(x, sharding)
            self._last = jax.device_put(x, HOST)
            return self._last
        size, page = math.prod(shape), self._page_bytes // zero.dtype.itemsize
        # Rows, because elements beyond 2**31 cannot be counted.
        rows, width = (size // 256, 256) if size % 256 == 0 else (size, 1)
        if size <= page or rows >= 2**31:
            x = jax.device_put(jnp.full(shape, zero), HOST)
        else:
            x = jax.device_put(lax.empty((rows, width), dtype), HOST)
            for start in range(0, rows, page // width):
                part = jnp.full((min(page // width, rows - start), width), zero)
                x = lax.dynamic_update_slice(x, jax.device_put(part, HOST), (start, 0))
            x = x.reshape(shape)
        self._last = x
        return x
