"""What a rule is: an optimizer's maths on plain floating-point values.

A rule is a few pure functions of arrays that are already decoded, written once and called by every
implementation. What varies from step to step (schedules, clipping, bias correction, the trust
ratio) arrives as a value in `Scalars`, so no implementation has to know of it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp


class Slot(NamedTuple):
    """One tensor of state per parameter."""

    name: str
    role: Literal["moment", "second_moment"]
    """A step divides by the root of a second moment, which is never negative: it is rounded to zero
    only from zero, and its codes need no sign."""

    @property
    def second_moment(self):
        """Whether it is one."""
        return self.role == "second_moment"

    @property
    def signed(self):
        """Whether its values have signs."""
        return not self.second_moment


class Rule(NamedTuple):
    """An optimizer, as functions of decoded values and of its own scalars, `own`.

    - `scalars(numbers, count)` makes `own` for a step, a NamedTuple: `numbers` are what the
      optimizer was built with, by name, those of schedules for this step, and `count` is the number
      of the step, from 1 on.
    - `prepare(own)` works out what is the same for all elements, so that no thread has to.
    - `decays(own)`: what the old slots are multiplied by on the way into the new ones, which can be
      made part of their scales.
    - `moments(g, decayed, own)` returns the new slots, from old ones that are multiplied already.
    - `direction(g, slots, own, divide)` is the direction of the step before decoupled weight decay,
      or of a rule of the form "sign" what the step is the sign of. The slots are those that it
      `reads`. New ones come as they were stored, with the square roots of second moments in their
      place: a root of a code is cheaper than the root of what it stands for. `divide(a, b)`, with
      `b >= 0`, is the implementation's.
    - `factors(own)`: what new slots are multiplied by beforehand, so that it can be made part of
      their scales.
    - `gradient_share(own)`: the weight of the gradient in the new value of the first slot, which is
      a moving average of it. A small new value proves a small gradient.
    """

    name: str
    slots: tuple[Slot, ...]
    reads: Literal["old", "new"]
    """Which slots the direction is made from. One of new slots is that of the stored ones, so that
    it can be made again from them."""
    form: Literal["sign", "value"]
    """Whether a step is the sign of the direction, which fits in a byte."""
    ratio: bool
    """Whether the norm of the leaf scales the step: a trust ratio. Such a rule reads new slots."""
    scalars: Callable
    prepare: Callable
    decays: Callable
    moments: Callable
    direction: Callable
    factors: Callable
    gradient_share: Callable
    grad_limit: float
    """A gradient element larger than this is treated as non-finite: with it, moments and the
    inverse of their block's absmax stay normal float32 numbers."""
    is_quotient: bool = False
    """Whether `direction` is `divide(first_slot, b)`, with nothing of the first slot in `b`: then
    the scale of the slot can be made part of the division."""


class Scalars(NamedTuple):
    """The values of one step, for one leaf: each a number or a 0-d array."""

    own: Any
    """Those of the rule, a NamedTuple."""
    step_size: Any = 1.0
    """What the direction is multiplied by: minus the learning rate."""
    weight_decay: Any = 0.0
    grad_scale: Any = None
    """What percentile clipping multiplies the gradient by; None without clipping."""
    ratio_scale: Any = 1.0
    """The trust ratio is `clip(ratio_scale * |p| / |u|, ratio_low, ratio_high)`."""
    ratio_low: Any = 0.0
    ratio_high: Any = float("inf")

    def astype(self, dtype):
        """All values as 0-d arrays of one dtype; what is None stays None."""
        return jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), self)

    def prepared(self, rule):
        """With what is the same for all elements worked out."""
        return self._replace(own=rule.prepare(self.own))


def debias(decay, count):
    """1 / (1 - decay**count): what makes the moving average of `count` terms unbiased."""
    # Through log and expm1, because 1 - 0.999**t in float32 loses half its digits at t = 1.
    if isinstance(decay, int | float):
        log = math.log(decay) if decay > 0 else -math.inf
    else:
        # Not in a dtype of its own: a decay in bfloat16 would have a logarithm of two digits.
        log = jnp.log(decay.astype(jnp.result_type(float)))
    # A count that is negative, as only a damaged state has it, is to be seen.
    steps = jnp.where(count > 0, count.astype(jnp.result_type(float)), jnp.nan)
    return -1 / jnp.expm1(steps * log)
