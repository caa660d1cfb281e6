"""Runs the kernels where there is no GPU: in Pallas's interpreter."""

import contextlib
import functools

import jax
import pytest

from optax_lamblion import _leaf, _stream
from pallas_kernels import _dispatch, mosaic
from pallas_kernels.mosaic_tile import INTERPRET

KERNELS = ("lion_step", "lion_signs", "lamb_moments", "lamb_apply")

interpreted_step = functools.partial(mosaic.step, interpret=INTERPRET)
"""`mosaic.step` on a CPU."""


def _choose(implementation, why_not, kernel, general, arrays):
    if implementation == "xla" or why_not:
        return general(*arrays)
    return functools.partial(kernel, interpret=INTERPRET)(*arrays)


@contextlib.contextmanager
def interpreted():
    """Within, optimizers take the kernels wherever a GPU would, in the interpreter.

    Paged ones are not to be jitted.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "choose", _choose)

        for name in _leaf.STEPS:
            patch.setitem(_leaf.STEPS, name, _traced_anew(name))
        # Not as one program: JAX cannot compile the interpreter's callbacks, which have an order,
        # into one that has results in host memory.
        patch.setattr(_stream, "run", _stream.run.__wrapped__)
        yield


def _traced_anew(name):
    # A function of its own, as JAX remembers what it has traced by function.
    def step(*args, **kwargs):
        return getattr(_dispatch, name)(*args, **kwargs)

    return jax.jit(step, static_argnums=0, static_argnames="implementation")
