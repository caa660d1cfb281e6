"""What is wrong with the arguments of an optimizer, said as early as it can be known."""

import numpy as np

from optax_lamblion._implementation import check_kernels_exist
from optax_lamblion._optimizers import clipping
from optax_lamblion._state.options import StateOptions, check_min_8bit_size


def is_number(x):
    """Whether `x` is a Python number, whose value is known while tracing."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def is_off(percentile):
    """Whether this `percentile_clipping` is known to do nothing."""
    return percentile is None or (is_number(percentile) and percentile == 100)


def check_settings(c):
    """Raises what can be known to be wrong before `init`."""
    for name, value in c.numbers.items():
        _NUMBERS[name](name, value)
    if c.learning_rate is not None:
        _check_value("learning_rate", c.learning_rate)
    _check_not_negative("weight_decay", c.weight_decay)
    if c.max_unorm is not None:
        _check_not_negative("max_unorm", c.max_unorm)
    if is_number(c.max_unorm) and c.max_unorm == 0:
        raise ValueError("`max_unorm` must be positive. For LAMB's own trust ratio pass None.")
    if c.max_unorm is not None and c.trust_clip is not None:
        raise ValueError(
            "`max_unorm` replaces the trust ratio that `trust_clip` clips. Pass one of them."
        )
    _check_trust_clip(c.trust_clip)
    if c.bits is not None and (isinstance(c.bits, bool) or not isinstance(c.bits, int)):
        raise TypeError(
            f"`bits` must be 8 or 32 as a Python int, got {type(c.bits).__name__}. Under "
            "`optax.inject_hyperparams`, which makes arrays of numbers, use the variants with the "
            'bits in their name, such as `lion8bit`, or pass `static_args=("bits",)`.'
        )
    if c.bits not in (None, 8, 32):
        raise ValueError(f"`bits` must be 8 or 32, got {c.bits}.")
    if c.min_8bit_size is not None:
        check_min_8bit_size(c.min_8bit_size)
    for name in ("block_wise", "adam_w_mode", "paged"):
        check_bool(name, getattr(c, name))
    clipping.check_percentile(c.percentile_clipping)
    if c.options is not None and not isinstance(c.options, StateOptions):
        raise TypeError(
            f"`options` must be a `StateOptions`, got {type(c.options).__name__}. "
            "For example `options=StateOptions(block_size=128)`."
        )
    check_kernels_exist(c.chosen.implementation, c.bits, c.block_size)
    if not c.block_wise and c.options is not None and c.options.block_size != 256:
        raise ValueError(
            "`block_wise=False` means one block per tensor, but `options` has "
            f"`block_size={c.options.block_size}`. Pass one of them."
        )


def check_bool(name, value):
    """Raises `TypeError` unless it is a Python bool."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def _check_value(name, value):
    # A dtype in the wrong place is a class, which looks like a schedule and can be called like one.
    if isinstance(value, bool | type | np.dtype) or not (
        is_number(value) or callable(value) or hasattr(value, "dtype")
    ):
        raise TypeError(f"`{name}` must be a number or a schedule, got {value!r}.")


def _check_not_negative(name, value):
    _check_value(name, value)
    if is_number(value) and value < 0:
        raise ValueError(f"`{name}` must not be negative, got {value}.")


def _check_beta(name, value):
    _check_value(name, value)
    if is_number(value) and not 0 <= value < 1:
        raise ValueError(f"`{name}` must be at least 0 and below 1, got {value}.")


_NUMBERS = {
    "b1": _check_beta,
    "b2": _check_beta,
    "eps": _check_not_negative,
    "bias_correction": check_bool,
}
"""How the numbers of rules are checked."""


def _check_trust_clip(trust_clip):
    if trust_clip is None:
        return
    if (
        not isinstance(trust_clip, tuple | list)
        or len(trust_clip) != 2
        or not all(is_number(x) or hasattr(x, "dtype") for x in trust_clip)
    ):
        raise TypeError(f"`trust_clip` must be a pair such as `(0.1, 10.0)`, got {trust_clip!r}.")
    low, high = trust_clip
    if is_number(low) and is_number(high) and not 0 <= low <= high:
        raise ValueError(f"`trust_clip` needs 0 <= low <= high, got {tuple(trust_clip)}.")


def check_learning_rate(name, learning_rate):
    """Raises `TypeError` for None, which only a building block may have."""
    if learning_rate is None:
        raise TypeError(
            "`learning_rate` must be a number or a schedule, got None. For the direction alone use "
            f"`scale_by_{name}`."
        )
