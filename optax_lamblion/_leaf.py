"""A leaf that is to be stepped, and the functions that step it."""

from typing import Any, NamedTuple

import jax

from pallas_kernels import _dispatch, rules
from pallas_kernels.dither import Dither
from pallas_kernels.step import Spec


class Leaf(NamedTuple):
    """The arguments of `_dispatch.step`. `spec` is static."""

    spec: Spec
    g: Any
    p: Any
    slots: tuple[Any, ...]
    absmaxes: tuple[Any, ...]
    scalars: rules.Scalars
    dither: Dither


# Inner jits: steps of equal shape share one trace and one lowering.
STEPS = {
    name: jax.jit(getattr(_dispatch, name), static_argnums=0, static_argnames="implementation")
    for name in ("step", "moments", "apply", "step_piece", "moments_piece", "apply_piece")
}
