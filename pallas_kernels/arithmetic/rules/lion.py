"""Lion (Chen et al., 2023): the sign of a mix of momentum and gradient."""

from typing import Any, NamedTuple

from pallas_kernels.arithmetic.rules.rule import Rule, Slot


class Own(NamedTuple):
    """The scalars of Lion.

    The complements are kept beside the betas because `1 - 0.9` in float32 is not 0.1; Optax takes
    them in double precision too when the betas are Python numbers.
    """

    b1: Any = 0.9
    one_minus_b1: Any = 0.1
    b2: Any = 0.99
    one_minus_b2: Any = 0.01


def _scalars(numbers, count):
    b1, b2 = numbers["b1"], numbers["b2"]
    return Own(b1, 1 - b1, b2, 1 - b2)


def _moments(g, decayed, own):
    (m,) = decayed
    return (own.one_minus_b2 * g + m,)


def _direction(g, slots, own, divide):
    (m,) = slots
    return own.one_minus_b1 * g + own.b1 * m


LION = Rule(
    name="lion",
    slots=(Slot("mu", "moment"),),
    reads="old",
    form="sign",
    ratio=False,
    scalars=_scalars,
    prepare=lambda own: own,
    decays=lambda own: (own.b2,),
    moments=_moments,
    direction=_direction,
    factors=lambda own: (1.0,),
    gradient_share=lambda own: own.one_minus_b2,
    grad_limit=2.0**126,
)
