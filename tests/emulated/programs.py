"""Functions that launch kernels, made once for all cases of which a compiler sees the same.

Kernels are those of the implementation that is emulated.
"""

import functools

import jax

from pallas_kernels.dispatch import IMPLEMENTATIONS
from tests.emulated import launching
from tests.steps import on_arrays


def implementation():
    """The one that is emulated, of `dispatch.IMPLEMENTATIONS`."""
    return IMPLEMENTATIONS[launching.current().target.implementation]


def steps(spec):
    """The step of a leaf by kernels, and by XLA, as functions of arrays."""
    return tuple(step(spec, x) for x in (launching.current().target.implementation, "xla"))


@functools.cache
def step(spec, name):
    """The step of a leaf by an implementation, as a function of arrays."""
    return jax.jit(functools.partial(on_arrays(IMPLEMENTATIONS[name].steps.step), spec))


@functools.cache
def halves():
    """`moments` and `apply` by kernels, of a `Leaf`."""
    made = implementation().steps
    return jax.jit(made.moments), jax.jit(made.apply)


@functools.cache
def whole():
    """`step` by kernels, of a `Leaf`."""
    return jax.jit(implementation().steps.step)
