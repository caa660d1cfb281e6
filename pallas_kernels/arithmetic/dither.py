"""Dither: where between two levels the stored moments of a block are rounded up, step by step.

A moment that lies a fraction `f` of the way between two levels is rounded up where `u < f`, with

    u(step, block) = frac(step * a + offset(block)),

a Weyl sequence: so evenly spread over the steps that a moment goes up in a share `f` of them, and
even a small change moves it in the end, which rounding to the nearest level would lose at every
step. Of its binary digits all but the first few are scrambled anew in every step: what happens in
one percent of the steps then happens at no regular times, which would let go of a moment too early.

The number is one for all elements of a block. It takes no hash of an element, no stored state and
no knowledge of where in its tensor an element lies; only the block's number is needed.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pallas_kernels.arithmetic.hashing import mix
from pallas_kernels.arithmetic.shards import Place

STRIDES = (0x9E3779B9, 0x91E10DA5, 0xD1B54A33)
"""`a` of every slot, in units of 2**-32: 1/phi, 1/rho**2 and 1/psi, where phi, rho and psi are the
positive roots of x**2 = x + 1, x**3 = x + 1 and x**4 = x + 1 (Roberts, 2018, "The unreasonable
effectiveness of quasirandom sequences"). `python -m tests.rounding.constants` compares others."""

RESIDUAL_STRIDE = 0x6A09E667
"""`a` of the residuals of parameters: the square root of 2, less 1."""

BLOCK_STRIDE = 0xC13FA9A9
"""How far the offsets of neighbouring blocks are apart, in the same units: 1/rho."""


class Dither(NamedTuple):
    """Where the sequences of a leaf stand."""

    step: Any
    """uint32 scalar: the number of the step."""
    leaf: Any
    """uint32 scalar: what sets the leaf apart from others."""
    digits: tuple[Any, ...] = ()
    """For every slot how many first digits are left as they are (see `even_digits`), uint32
    scalars; none without scrambling. Which others change is worked out where they are needed: so
    all leaves of a step are given the same numbers but for `leaf`."""
    place: Place | None = None
    """Where in its tensor the shard lies that is stepped, if it is one."""

    def scrambled(self, digits):
        """It, with so many first digits left as they are in every slot (see `even_digits`)."""
        return self._replace(digits=tuple(digits))

    def numbers(self, count, block_size, first=None):
        """The numbers of `count` consecutive blocks in their tensor, from `first` on (uint32).

        Without `block_size` there is one block, whatever part of the tensor is here.
        """
        numbers = lax.iota(jnp.uint32, count)
        if first is not None:
            numbers = numbers + first
        if self.place is None or block_size is None:
            return numbers
        return self.place.block(numbers, block_size)

    def key(self):
        """What the random numbers of a leaf's elements are made from in this step."""
        return mix(self.step + self.leaf)

    def of_residuals(self, numbers):
        """`u` for the residuals of parameters in these blocks, in units of 2**-32, uint32.

        All of its digits are evenly spread: nothing falls by these, so no clock matters.
        """
        phase = self.step * jnp.uint32(RESIDUAL_STRIDE) + self.leaf
        return phase + numbers * jnp.uint32(BLOCK_STRIDE)

    def fractions(self, slot, numbers):
        """`u` for blocks of these numbers, float32 strictly between 0 and 1; `slot` is an index."""
        phase = self.step * jnp.uint32(STRIDES[slot]) + self.leaf
        bits = phase + numbers * jnp.uint32(BLOCK_STRIDE)
        if self.digits:
            bits = bits ^ (self.key() >> self.digits[slot])
        return fraction(bits)


def even_digits(rule, s):
    """How many digits of `u` stay evenly spread in every slot of a rule (uint32 scalars).

    First moments: `even_digits_for` their decay. Second moments: the fewest, as one that falls by
    the clock falls too soon, and a step divides by its root.
    """
    pairs = zip(rule.slots, rule.decays(s.own), strict=True)
    return tuple(
        jnp.uint32(FEWEST) if slot.second_moment else even_digits_for(decay)
        for slot, decay in pairs
    )


def even_digits_for(decay):
    """How many digits of `u` stay evenly spread, for a moving average with this decay (uint32).

    Evenness matters within what the average remembers, some 1 / (1 - decay) steps: a tenth of that
    many intervals are even, at least 8. `tests.rounding.constants` compares other numbers.
    """
    if isinstance(decay, int | float):  # while nothing is compiled, arrays would take time
        digits = math.floor(math.log2(0.1 / (1 - decay))) if decay < 1 else MOST
        return jnp.uint32(min(max(digits, FEWEST), MOST))
    intervals = 0.1 / (1 - decay.astype(jnp.float32))
    return jnp.clip(jnp.floor(jnp.log2(intervals)), FEWEST, MOST).astype(jnp.uint32)


FEWEST, MOST = 3, 23


def fraction(bits):
    """uint32 numbers as float32 strictly between 0 and 1, by their upper 23 bits."""
    # As mantissas of numbers from 1 to 2; half a unit keeps the result away from both ends.
    return ((bits >> 9) | jnp.uint32(0x3F800000)).view(jnp.float32) - (1 - 2.0**-24)
