"""The optimizers' maths: Lion and LAMB on plain floating-point values.

A rule is a few pure functions of arrays that are already decoded, written once and called by every
implementation. What varies from step to step (schedules, clipping, bias correction, the trust
ratio) arrives as a value in `Scalars`, so no implementation has to know of it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp


class Scalars(NamedTuple):
    """The values of one step, for one leaf: each a number or a 0-d array.

    The complements are kept beside `b1` and `b2` because `1 - 0.9` in float32 is not 0.1; Optax
    takes them in double precision too when the betas are Python numbers.
    """

    b1: Any = 0.9
    one_minus_b1: Any = 0.1
    b2: Any = 0.999
    one_minus_b2: Any = 0.001
    debias1: Any = 1.0
    """1 / (1 - b1**t), or 1 without bias correction."""
    debias2: Any = 1.0
    eps: Any = 1e-8
    grad_scale: Any = None
    """What percentile clipping multiplies the gradient by; None without clipping."""
    weight_decay: Any = 0.0
    step_size: Any = 1.0
    """What the direction is multiplied by: minus the learning rate."""
    ratio_scale: Any = 1.0
    """The trust ratio is `clip(ratio_scale * |p| / |u|, ratio_low, ratio_high)`."""
    ratio_low: Any = 0.0
    ratio_high: Any = float("inf")
    biased_eps: Any = None
    """eps / debias1; this and the next two are `prepared` from the others."""
    root_factor: Any = None
    """sqrt(debias2) / debias1: by what the root of a second moment counts in a direction."""
    maximum_factor: Any = None
    """1 / debias1: the same for the maximum of bias-corrected second moments."""

    def astype(self, dtype):
        """All values as 0-d arrays of one dtype; what is None stays None."""
        return Scalars(*(None if x is None else jnp.asarray(x).astype(dtype) for x in self))

    def prepared(self):
        """With what is the same for all elements worked out, so that no thread has to."""
        return self._replace(
            biased_eps=self.eps / self.debias1,
            root_factor=jnp.sqrt(self.debias2) / self.debias1,
            maximum_factor=1 / self.debias1,
        )


class Slot(NamedTuple):
    """One tensor of state per parameter."""

    name: str
    signed: bool
    second_moment: bool
    """A step divides by its root: rounded to zero only from zero."""


class Rule(NamedTuple):
    """An optimizer, as functions of decoded values.

    - `decays(s)`: what the old slots are multiplied by on the way into the new ones, which can be
      made part of their scales.
    - `moments(g, decayed, s)` returns the new slots, from old ones that are multiplied already.
    - `direction` gives the direction of the step, before decoupled weight decay. If `from_old`, the
      direction is the sign of `direction(g, old_slots, s)`. Else it is `direction(new_slots, s)`,
      from the new slots as they were stored, with the square roots of second moments in their
      place: a root of a code is cheaper than the root of what it stands for. An implementation may
      bring its own `divide(a, b)`, with `b >= 0`.
    - `factors(s)`: what these slots are multiplied by beforehand, so that it can be made part of
      their scales.
    - `gradient_share(s)`: the weight of the gradient in the new value of the first slot, which is a
      moving average of it. A small new value proves a small gradient.
    """

    name: str
    slots: tuple[Slot, ...]
    decays: Callable
    moments: Callable
    direction: Callable
    factors: Callable
    gradient_share: Callable
    from_old: bool
    trust_ratio: bool
    grad_limit: float
    """A gradient element larger than this is treated as non-finite: with it, moments and the
    inverse of their block's absmax stay normal float32 numbers."""
    is_quotient: bool = False
    """Whether `direction` is `divide(first_slot, b)`, with nothing of the first slot in `b`: then
    the scale of the slot can be made part of the division."""


# ---------------------------------------------------------------------------------------- Lion


def _lion_moments(g, decayed, s):
    (m,) = decayed
    return (s.one_minus_b2 * g + m,)


def _lion_direction(g, slots, s):
    (m,) = slots
    return s.one_minus_b1 * g + s.b1 * m


LION = Rule(
    "lion",
    (Slot("mu", True, False),),
    lambda s: (s.b2,),
    _lion_moments,
    _lion_direction,
    lambda s: (1.0,),
    lambda s: s.one_minus_b2,
    from_old=True,
    trust_ratio=False,
    grad_limit=2.0**126,
)

# ---------------------------------------------------------------------------------------- LAMB


def _lamb_moments(g, decayed, s):
    m, v, *v_max = decayed
    m = s.one_minus_b1 * g + m
    v = s.one_minus_b2 * (g * g) + v
    return (m, v, *(jnp.maximum(x, v * s.debias2) for x in v_max))


def _lamb_direction(slots, s, divide=jnp.divide):
    # (m * debias1) / (sqrt(v * debias2) + eps), divided by debias1 above and below.
    m, *_, root_v = slots
    return divide(m, root_v + s.biased_eps)


def _lamb_factors(s):
    return 1.0, s.root_factor


def _amsgrad_factors(s):
    return 1.0, 1.0, s.maximum_factor


LAMB = Rule(
    "lamb",
    (Slot("mu", True, False), Slot("nu", False, True)),
    lambda s: (s.b1, s.b2),
    _lamb_moments,
    _lamb_direction,
    _lamb_factors,
    lambda s: s.one_minus_b1,
    from_old=False,
    trust_ratio=True,
    grad_limit=2.0**63,  # its square is 2**126
    is_quotient=True,
)

LAMB_AMSGRAD = LAMB._replace(
    name="lamb_amsgrad",
    slots=(*LAMB.slots, Slot("nu_max", False, True)),
    decays=lambda s: (s.b1, s.b2, 1.0),
    factors=_amsgrad_factors,
)

# ------------------------------------------------------------------------------------- scalars


def debias(decay, count):
    """1 / (1 - decay**count): what makes the moving average of `count` terms unbiased."""
    # Through log and expm1, because 1 - 0.999**t in float32 loses half its digits at t = 1.
    if isinstance(decay, int | float):
        log = math.log(decay) if decay > 0 else -math.inf
    else:
        # Not in a dtype of its own: a decay in bfloat16 would have a logarithm of two digits.
        log = jnp.log(decay.astype(jnp.result_type(float)))
    return -1 / jnp.expm1(count.astype(jnp.result_type(float)) * log)


def trust_ratio(param_norm, update_norm, s):
    """The factor between a LAMB direction and its step: 1 when either norm is zero.

    A norm that is not a number makes a ratio that is none: what is broken is to be seen.
    """
    zero = (param_norm == 0) | (update_norm == 0)
    ratio = s.ratio_scale * param_norm / jnp.where(zero, 1, update_norm)
    return jnp.where(zero, 1, jnp.clip(ratio, s.ratio_low, s.ratio_high))
