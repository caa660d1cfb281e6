"""Functions that launch kernels, made once for all cases of which a compiler sees the same.

Kernels are those of the implementation that is emulated.
"""

import functools

import jax

from pallas_kernels.dispatch import IMPLEMENTATIONS
from tests.emulated import launching
from tests.steps import with_residual


def implementation():
    """The one that is emulated, of `dispatch.IMPLEMENTATIONS`."""
    return IMPLEMENTATIONS[launching.current().target.implementation]


def steps(spec):
    """The step of a leaf by kernels, and by XLA, as functions of arrays."""
    return kernels(spec, launching.current().target.implementation), general(spec)


@functools.cache
def kernels(spec, implementation):
    """The step of a leaf by the kernels of an implementation."""
    return _step(spec, implementation)


@functools.cache
def general(spec):
    """The step of a leaf by XLA."""
    return _step(spec, "xla")


def _step(spec, implementation):
    step = with_residual(IMPLEMENTATIONS[implementation].steps.step)
    return jax.jit(functools.partial(step, spec))


@functools.cache
def halves():
    """`moments` and `apply` by kernels, of a `Leaf`."""
    made = implementation().steps
    return jax.jit(made.moments), jax.jit(made.apply)


@functools.cache
def whole():
    """`step` by kernels, of a `Leaf`."""
    return jax.jit(implementation().steps.step)
