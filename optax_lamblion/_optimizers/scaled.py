"""Gradients times a number, without a pass over them that writes the product.

A transformation that scales gradients returns the scaled arrays, as all that come after it expect.
Under `apply_fused` it also notes what they are made of. An optimizer of this package finds that by
the identity of the array, takes the gradient as it was, and has the number multiplied where a step
reads the gradient. The scaled array is then nobody's operand, and XLA drops what would write it.
Whatever makes another array of it on the way, makes one without a note, and that array is stepped.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic.dtypes import promote

REQUEST = "optax_lamblion_apply"
"""The extra argument of `update` by which `apply_fused` passes its `Request` on."""


class Origin(NamedTuple):
    """What an array is made of: `scale * raw`."""

    raw: Any
    scale: Any = None
    """A scalar; None for 1."""
    squared: Any = None
    """The squared norm of the product, a scalar, if it is known."""


class Request:
    """What one call of `apply_fused` asks for: parameters in place of updates.

    It holds the notes on scaled gradients as well, and with them arrays, so it lives as long as the
    call.
    """

    def __init__(self):
        self._notes: dict[int, tuple[Any, Origin]] = {}

    def origin(self, array) -> Origin:
        """What an array is made of; of an unknown one that is itself."""
        _, origin = self._notes.get(id(array), (None, Origin(array)))
        return origin

    def note(self, scaled, array, scale, squared=None):
        """Returns `scaled`, which is `scale * array`, and remembers that.

        Args:
          scaled: The product, in the dtype of `array`.
          array: What was scaled, which can be a product itself.
          scale: A scalar.
          squared: The squared norm of `scaled`, if it is known.
        """
        origin = self.origin(array)
        # With the array itself, as the number by which it is found is another's once it is gone.
        self._notes[id(scaled)] = (
            scaled,
            Origin(origin.raw, times(origin.scale, scale), squared),
        )
        return scaled


# A wrapper may compile or map an `update`. Inside, arrays are others, and notes of no use.
jax.tree_util.register_pytree_node(Request, lambda _: ((), None), lambda *_: Request())


def request_of(extra_args) -> Request:
    """The request among the extra arguments of `update`, or one that nobody will read."""
    request = extra_args.get(REQUEST)
    return Request() if request is None else request


def times(a, b):
    """The product of two scales, of which None is 1."""
    if a is None or b is None:
        return b if a is None else a
    a, b = jnp.asarray(a), jnp.asarray(b)
    dtype = promote(a.dtype, b.dtype)
    return a.astype(dtype) * b.astype(dtype)
