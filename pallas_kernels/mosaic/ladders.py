"""The ladders as kernels climb them, on GPUs that have roots and logarithms as instructions.

They lead to the codes of `ladders`, by other ways, with fewer instructions. What `prepare` works
out, a thread works out once for a row of 32 elements or so.
"""

import jax.numpy as jnp

from pallas_kernels.arithmetic.ladders import TINY, Climbed, dynamic, inverse, is_nearest, round_to

_EIGHTH_UNIT = 255.0**-8


def for_kernel(codec):
    """The same codec for use inside a GPU kernel, where roots and logarithms are instructions."""
    if codec.name == "dynamic":
        return dynamic(
            codec.signed,
            lambda count: round_to(jnp.exp2(jnp.log2(count) * _LOG2_5)),
            lambda decade: jnp.exp2((2.0**23 + 7 - decade) * _LOG2_5),
        )
    if codec.name != "power":
        return codec
    if codec.signed:
        return codec._replace(
            raw=lambda rung: rung**3,
            unit=127.0**-3,
            prepare=_prepare_cubes,
            climb=_climb_cubes,
        )
    return codec._replace(
        raw=lambda rung: rung**8,
        raw_root=lambda rung: rung**4,
        unit=_EIGHTH_UNIT,
        prepare=_prepare_eighth_powers,
        climb=_climb_eighth_powers,
    )


def _prepare_cubes(absmax, u):
    offset = jnp.where(absmax >= TINY, _LOG2_127 - jnp.log2(absmax) * (1 / 3), -jnp.inf)
    if is_nearest(u):
        return (offset,)
    middle = u * (1 - u)
    bend = middle * (_BEND[0] + u * (_BEND[1] + u * _BEND[2]))
    return offset, 0.5 - u, -middle, -bend, 0.5 - jnp.exp2(jnp.log2(u) * (1 / 3))


def _climb_cubes(x, least, offset, *of_u):
    """Where `x` lies between the rungs of the signed cube, as a real number.

    With z = k + u, a share u of the gap from k to k + 1 ends at z**3 + 3 c z + c (1 - 2 u), where c
    is u (1 - u). The inverse of that is t - c / t - c (1 - 2 u) / (3 t**2) + O(t**-4) in the cube
    root t; the constants of the last term are fitted, and then it is less than 4e-4 off from rung 1
    on, and on rung 0, where u**(1/3) decides, it is exact. To the nearest level, with u = 1/2, a
    bound on 1/t is enough for that. Logarithm and power are off by 3e-4. So codes are those of
    `ladders` except within a thousandth of the gap from where rounding turns.
    """
    log = jnp.log2(x) * (1 / 3) + offset
    root, inverse_root = jnp.exp2(log), jnp.exp2(-log)
    if of_u:
        constant, slope, bend, below_one = of_u
        correction = (bend * inverse_root + slope) * inverse_root + constant
        rung = jnp.minimum(root + jnp.where(log < 0, below_one, correction), 127.25)
    else:
        rung = root - 0.25 * jnp.minimum(inverse_root, _NEAREST_BOUND)
    return Climbed(rung if isinstance(least, float) else jnp.maximum(rung, least))


def _prepare_eighth_powers(absmax, u):
    if is_nearest(u):
        return (inverse(absmax),)
    # So that no rounding error lifts the largest value of a block above the top.
    u = jnp.maximum(u, 2.0**-15)
    return inverse(absmax), (1 - u) * _EIGHTH_UNIT, u * _EIGHTH_UNIT


def _climb_eighth_powers(x, least, scale, of_low=_EIGHTH_UNIT / 2, of_high=_EIGHTH_UNIT / 2):
    y = x * scale
    # Half below 2**23, numbers are multiples of a half: the sum is rounded to the rung below the
    # root, or is less than 2**23, which is rung 0. For the absolute value, see `round_to`.
    floor = jnp.abs(jnp.exp2(jnp.log2(y) * (1 / 8) + _LOG2_255) + (2.0**23 - 0.5))
    rung = jnp.maximum(floor - 2.0**23, least)
    low, high = rung**4, (rung + 1) ** 4
    up = y > (low * low) * of_low + (high * high) * of_high
    return Climbed(jnp.where(up, rung + 1, rung), jnp.where(up, high, low))


_LOG2_5 = 2.321928094887362
_LOG2_127 = 6.98868468677217
_LOG2_255 = 7.994353436858858
_NEAREST_BOUND = 1.174802
"""4 (t - 1/2) where t**3 = 1/2 is the middle between the cubes of 0 and 1."""
_BEND = 0.35847694, -0.72832233, 0.01545
