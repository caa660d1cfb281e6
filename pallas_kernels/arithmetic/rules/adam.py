"""Adam (Kingma & Ba, 2015), and AMSGrad (Reddi et al., 2018) in Optax's form of it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels.arithmetic.rules.rule import Rule, Slot, debias


class Own(NamedTuple):
    """The scalars of Adam; for the complements see those of Lion."""

    b1: Any = 0.9
    one_minus_b1: Any = 0.1
    b2: Any = 0.999
    one_minus_b2: Any = 0.001
    debias1: Any = 1.0
    """1 / (1 - b1**t), or 1 without bias correction."""
    debias2: Any = 1.0
    eps: Any = 1e-8
    biased_eps: Any = None
    """eps / debias1; this and the next two are prepared from the others."""
    root_factor: Any = None
    """sqrt(debias2) / debias1: by what the root of a second moment counts in a direction."""
    maximum_factor: Any = None
    """1 / debias1: the same for the maximum of bias-corrected second moments."""


def _scalars(numbers, count):
    b1, b2 = numbers["b1"], numbers["b2"]
    debiased = debias if numbers["bias_correction"] else lambda decay, count: 1.0
    first, second = debiased(b1, count), debiased(b2, count)
    return Own(b1, 1 - b1, b2, 1 - b2, first, second, numbers["eps"])


def _prepare(own):
    return own._replace(
        biased_eps=own.eps / own.debias1,
        root_factor=jnp.sqrt(own.debias2) / own.debias1,
        maximum_factor=1 / own.debias1,
    )


def _moments(g, decayed, own):
    m, v, *v_max = decayed
    m = own.one_minus_b1 * g + m
    v = own.one_minus_b2 * (g * g) + v
    return (m, v, *(jnp.maximum(x, v * own.debias2) for x in v_max))


def _direction(g, slots, own, divide):
    # (m * debias1) / (sqrt(v * debias2) + eps), divided by debias1 above and below.
    m, *_, root_v = slots
    return divide(m, root_v + own.biased_eps)


ADAM = Rule(
    name="adam",
    slots=(Slot("mu", "moment"), Slot("nu", "second_moment")),
    reads="new",
    form="value",
    ratio=False,
    scalars=_scalars,
    prepare=_prepare,
    decays=lambda own: (own.b1, own.b2),
    moments=_moments,
    direction=_direction,
    factors=lambda own: (1.0, own.root_factor),
    gradient_share=lambda own: own.one_minus_b1,
    grad_limit=2.0**63,  # its square is 2**126
    is_quotient=True,
)

ADAM_AMSGRAD = ADAM._replace(
    name="adam_amsgrad",
    slots=(*ADAM.slots, Slot("nu_max", "second_moment")),
    decays=lambda own: (own.b1, own.b2, 1.0),
    factors=lambda own: (1.0, 1.0, own.maximum_factor),
)
