"""Runs the kernels where there is no GPU: in Pallas's interpreter."""

import contextlib
import functools

import jax
import pytest

from optax_lamblion._steps import stream
from pallas_kernels import dispatch
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import INTERPRET
from tests.steps import on_arrays

KERNELS = ("lion_step", "lion_signs", "lamb_moments", "lamb_apply")

interpreted_step = on_arrays(functools.partial(mosaic.step, interpret=INTERPRET))
"""`mosaic.step` on a CPU, as a function of arrays."""


def _choice(implementation, why_not):
    return "xla" if implementation == "xla" or why_not("mosaic") else "mosaic"


def _call(chosen, implementation, calls, arrays):
    kwargs = dict(interpret=INTERPRET) if chosen == "mosaic" else {}
    return calls[chosen](*arrays, **kwargs)


@contextlib.contextmanager
def interpreted():
    """Within, optimizers take the kernels wherever a GPU would, in the interpreter.

    Paged ones are not to be jitted.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "choice", _choice)
        patch.setattr(dispatch, "call", _call)
        for name in ("step", "moments", "apply"):
            patch.setattr(dispatch, name, _traced_anew(getattr(dispatch, name)))
        # Not as one program: JAX cannot compile the interpreter's callbacks, which have an order,
        # into one that has results in host memory.
        patch.setattr(stream, "run", stream.run.__wrapped__)
        yield


def _traced_anew(jitted):
    # A function of its own, as JAX remembers what it has traced by function.
    return jax.jit(lambda *args: jitted.__wrapped__(*args))
