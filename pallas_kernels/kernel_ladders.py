"""The ladders as kernels climb them, on GPUs that have roots and logarithms as instructions.

They lead to the codes of `ladders`, by other ways, with fewer instructions.
"""

import jax.numpy as jnp

from pallas_kernels.ladders import TINY, dynamic, floor_to, inverse, power, power_level, round_to


def for_kernel(codec, stochastic=False):
    """The same codec for use inside a GPU kernel, where roots and logarithms are instructions.

    `stochastic` says whether it is for rounding at random or to the nearest level.
    """
    if codec.name == "dynamic":
        return dynamic(
            codec.signed,
            lambda count: round_to(jnp.exp2(jnp.log2(count) * _LOG2_5)),
            lambda decade: jnp.exp2((2.0**23 + 7 - decade) * _LOG2_5),
        )
    if codec.name != "power":
        return codec
    if codec.signed:
        if stochastic:
            return power(True, 3, root=lambda y: jnp.exp2(jnp.log2(y) * (1 / 3)))
        return codec._replace(scale=_cube_offset, nearest=_cube_position)
    if stochastic:
        return codec._replace(
            scale=_eighth_scale,
            bracket=_eighth_bracket,
            quantum=_EIGHTH,
            top_level=_EIGHTH_TOP,
        )
    return power(False, 8, root=_eighth_root)


def _cube_offset(absmax):
    return jnp.where(absmax >= TINY, _LOG2_127 - jnp.log2(absmax) * (1 / 3), -jnp.inf)


def _cube_position(x, offset):
    """Where `x` lies between the rungs of the signed cube, as a real number.

    The middle between the cubes of k - 1/2 -+ 1/2 is z**3 + 3/4 z with z = k - 1/2. The inverse of
    that polynomial is t - 1/(4t) + O(t**-5) in the cube root t, so this is less than 1/2 from the
    nearest rung. Between the rungs 0 and 1 the bound on 1/t makes it exact; between 1 and 2 it is
    off by 5e-4, and elsewhere by less than the 3e-4 that logarithm and power are. So codes are the
    nearest ones except where the two distances differ by less than a thousandth of the gap.
    """
    log = jnp.log2(x) * (1 / 3) + offset
    return jnp.exp2(log) - 0.25 * jnp.minimum(jnp.exp2(-log), _CUBE_BOUND)


def _eighth_root(y):
    return jnp.exp2(jnp.log2(y) * (1 / 8))


# The ladder of eighth powers in units of 1/256 rung, of which multiples are found by adding a
# number and taking it away again, as whole ones are: `t**8` is a level, and needs no `t / 255`.
_EIGHTH = 2.0**-8
_EIGHTH_TOP = (255 / 256) ** 8


def _eighth_scale(absmax):
    return inverse(absmax) * _EIGHTH_TOP


def _eighth_bracket(y):
    t = floor_to(_eighth_root(y), _EIGHTH)
    return t, power_level(t, 8), power_level(t + _EIGHTH, 8)


_LOG2_5 = 2.321928094887362
_LOG2_127 = 6.98868468677217
_CUBE_BOUND = 1.174802
"""4 (t - 1/2) where t**3 = 1/2 is the middle between the cubes of 0 and 1."""
