"""Rules that no optimizer of the library has: each the only one of its kind."""

from typing import Any, NamedTuple

from pallas_kernels.arithmetic.rules import Rule, Slot


class Own(NamedTuple):
    """A decay and what is missing to one."""

    b1: Any
    one_minus_b1: Any


def _scalars(numbers, count):
    b1 = numbers["b1"]
    return Own(b1, 1 - b1)


MOMENTUM = Rule(
    name="momentum",
    slots=(Slot("mu", "moment"),),
    reads="new",
    form="value",
    ratio=False,
    scalars=_scalars,
    prepare=lambda own: own,
    decays=lambda own: (own.b1,),
    moments=lambda g, decayed, own: (own.one_minus_b1 * g + decayed[0],),
    direction=lambda g, slots, own, divide: slots[0],
    factors=lambda own: (1.0,),
    gradient_share=lambda own: own.one_minus_b1,
    grad_limit=2.0**126,  # the square of which is infinite in float32
)
"""Plain momentum: of new slots, which nothing divides."""

LARS = MOMENTUM._replace(name="lars", ratio=True)
"""Momentum as long as a share of the parameter's norm."""

SIGNUM = MOMENTUM._replace(name="signum", form="sign")
"""The sign of the new momentum."""
