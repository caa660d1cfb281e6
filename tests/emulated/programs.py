"""Functions that launch kernels, made once for all cases of which a compiler sees the same."""

import functools

import jax

from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.xla import step as xla
from tests.steps import on_arrays


@functools.cache
def steps(spec):
    """The step of a leaf by kernels, and by XLA, as functions of arrays."""
    return tuple(
        jax.jit(functools.partial(on_arrays(made), spec)) for made in (mosaic.step, xla.step)
    )


@functools.cache
def halves():
    """`moments` and `apply` by kernels, of a `Leaf`."""
    return jax.jit(mosaic.moments), jax.jit(mosaic.apply)


@functools.cache
def whole():
    """`step` by kernels, of a `Leaf`."""
    return jax.jit(mosaic.step)
