"""The ladders as kernels climb them, on GPUs that have roots and logarithms as instructions.

They lead to the codes of `ladders`, by other ways, with fewer instructions. What `prepare` works
out, a thread works out once for a row of its elements.
"""

import jax.numpy as jnp

from pallas_kernels.arithmetic.ladders import ROUND, TINY, Climbed, dynamic, is_nearest, round_to


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
        unit=255.0**-8,
        prepare=_prepare_eighth_powers,
        climb=_climb_eighth_powers,
    )


# From rung k to the next one rounding turns at z = (1 - u) * k**n + u * (k + 1)**n. With t, the
# root of it, k + u is t - c / (t + d) nearly, where c is about (n - 1) / 2 * u * (1 - u). The
# constants of c and d are fitted to all rungs and all u. For the lowest rung, t + d is bounded from
# below: there c / (t + d) is one number, with which rounding turns where it should.


def _prepare_cubes(absmax, u):
    offset = jnp.where(absmax >= TINY, _LOG2_127 - jnp.log2(absmax) * (1 / 3), -jnp.inf)
    if is_nearest(u):
        return (offset,)
    u = jnp.maximum(u, _LEAST_U)
    root = jnp.exp2(jnp.log2(u) * (1 / 3))
    return offset, *_cubes_bend(u, root, -_minus_share_of(u * (1 - u)))


def _cubes_bend(u, root, factor):
    """What `_rung` wants to know of u, its cube root, and `_SHARE / c`.

    On rung 0 rounding turns at t = u**(1/3), so there t + d is c / (u**(1/3) - u). In the root s of
    u that is s**2 * (s + 1 / (1 + s)), here as a polynomial.
    """
    shift = -0.27835575 + u * (0.4206088 + u * 0.27967537)
    inner = 0.98389489 + root * (0.1399763 + root * (0.5271814 - root * 0.15164759))
    return 0.5 - u, factor, shift * factor, root * root * inner * factor


def _climb_cubes(x, least, offset, *of_u):
    """Where `x` lies between the rungs of the signed cube, as a real number.

    The formula is less than 4e-4 of the gap off, logarithm and power 3e-4. So codes are those of
    `ladders` except within a thousandth of the gap from where rounding turns.
    """
    t = jnp.exp2(jnp.log2(x) * (1 / 3) + offset)
    rung = _rung(t, *of_u or _CUBES_NEAREST)
    return Climbed(rung if isinstance(least, float) else jnp.maximum(rung, least))


def _prepare_eighth_powers(absmax, u):
    # A power of two, by which no number loses digits, and the logarithm of what is small is right.
    scale = (_INVERSE_EXPONENT - (absmax.view(jnp.int32) & _EXPONENT)).view(jnp.float32)
    offset = _LOG2_255 - jnp.log2(absmax * scale) * (1 / 8)
    scaling = scale, jnp.where(absmax >= TINY, offset, -jnp.inf)
    if is_nearest(u):
        return scaling
    u = jnp.maximum(u, _LEAST_U)
    return *scaling, *_eighth_powers_bend(u, _minus_share_of(u * (1 - u)) * (-1 / _EIGHTH_BEND))


def _eighth_powers_bend(u, factor):
    """What `_rung` wants to know of u, and `_SHARE / c`.

    On rung 1, below which no number comes, t + d is c / (t - 1 - u) where rounding turns.
    """
    shift = -1.53994954 + u * 4.16123545
    least = 0.20661469 + u * (6.19775008 + u * (-3.3073728 + u * 1.88966294))
    return 0.5 - u, factor, shift * factor, least * factor


def _climb_eighth_powers(x, least, scale, offset, *of_u):
    """Where `x` lies between the rungs of the eighth power, as a real number.

    From rung 4 on codes are those of `ladders` except within a thousandth of the gap from where
    rounding turns. On the rungs below it, which are 4e-15 of the largest value of a block and less,
    that is a fortieth of the gap, and on most of them less. What is less than the first rung, 6e-20
    of the largest value, may be stored as either neighbour: a second moment that is not 0 is never
    stored as 0, so it makes no difference to a step.
    """
    t = jnp.exp2(jnp.log2(x * scale) * (1 / 8) + offset)
    rung = jnp.maximum(_rung(t, *of_u or _EIGHTH_NEAREST), least)
    rounded = jnp.abs(rung + ROUND) - ROUND
    return Climbed(rung, rounded**4)


def _rung(t, above, factor, shift, least):
    """`t + above - c / max(t + d, l)`. `factor` is `_SHARE / c`, and d and l are given times it."""
    scaled = jnp.maximum(t * factor + shift, least)
    if not isinstance(above, float):  # it is 0 for the nearest level
        t = t + above
    return t + _minus_share_of(scaled)


def _minus_share_of(x):
    """`-_SHARE / x` for positive `x`, but for 2e-4 of it.

    The first guess, by arithmetic on exponents, is 0.75 to 0.78125 of -1 / x, and a Newton step
    leaves the square of its error. Negative, as a change of sign would be an instruction.
    """
    guess = (_MINUS_GUESS - x.view(jnp.int32)).view(jnp.float32)
    return guess * (1.53125 + x * guess)


_MINUS_GUESS = 0x7EC00000 - 2**31
_SHARE = 1 / 1.7063111852
_LEAST_U = 2.0**-11
"""So that no rounding error lifts the largest value of a block above the top."""
_EIGHTH_BEND = 3.64139178
"""c of the eighth power, in units of u * (1 - u)."""
_EXPONENT, _INVERSE_EXPONENT = 0x7F800000, 254 << 23
_LOG2_5 = 2.321928094887362
_LOG2_127 = 6.98868468677217
_LOG2_255 = 7.994353436858858
_CUBES_NEAREST = _cubes_bend(0.5, 0.5 ** (1 / 3), _SHARE / 0.25)
_EIGHTH_NEAREST = _eighth_powers_bend(0.5, _SHARE / 0.25 / _EIGHTH_BEND)
