"""What is wrong with the arguments of an optimizer, said as early as it can be known."""

import jax.numpy as jnp
import numpy as np

from optax_lamblion import _clipping
from optax_lamblion._implementation import check_kernels_exist
from optax_lamblion._layout import Layout, check_layout, refuse_layout
from optax_lamblion._options import StateOptions, check_min_8bit_size
from pallas_kernels.arithmetic.blocks import absmax_shape


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
    _clipping.check_percentile(c.percentile_clipping)
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


def check_state(c, state):
    """Raises where a state was made by another optimizer or with other arguments."""
    if not isinstance(state, c.state_type):
        raise TypeError(
            f"`update` needs the `{c.state_type.__name__}` that `tx.init(params)` returns, got "
            f"{type(state).__name__}. What a checkpoint library restored without a target becomes "
            "one by `convert_state(state, params, tx)`."
        )
    names = [slot.name for slot in c.rule.slots]
    if "nu_max" not in names and getattr(state, "nu_max", None) is not None:
        raise ValueError(
            "The state has a `nu_max`, which this optimizer does not keep. Build it with "
            "`amsgrad=True`, or make a new state with `tx.init(params)`."
        )
    if not c.clips and state.gnorm_history is not None:
        raise ValueError(
            "The state has a `gnorm_history`, which this optimizer does not keep. Build it with "
            "`percentile_clipping`, or make a new state with `tx.init(params)`."
        )
    counts = c.chosen.count_skipped
    if not counts and state.skipped is not None:
        raise ValueError(
            "The state has a count `skipped`, which this optimizer does not keep. Build it with "
            "`options=StateOptions(count_skipped=True)`, or leave the count behind with "
            "`state._replace(skipped=None)`."
        )
    if (c.layout is not None) != (state.mu_absmax is not None):
        has = Layout(c.chosen.codec, c.block_size) if c.layout is None else None
        refuse_layout(c.layout, has, state.mu)
    if c.layout is not None:
        check_layout(c.layout, state)
    for slot in c.rule.slots:
        if getattr(state, slot.name) is None:
            raise ValueError(
                f"The state has no `{slot.name}`, which this optimizer keeps. It was made with "
                "other arguments; make a new one with `tx.init(params)`."
            )
    if c.clips and state.gnorm_history is None:
        raise ValueError(
            "The state has no `gnorm_history`: it was made without `percentile_clipping`. "
            "Make a new one with `tx.init(params)`."
        )
    if counts and state.skipped is None:
        raise ValueError(
            "The state has no `skipped`: it was made without `StateOptions(count_skipped=True)`. "
            "Let it count from zero with `convert_state(state, params, tx)`, or make a new one "
            "with `tx.init(params)`."
        )


def check_gradient(name, g):
    """Raises `TypeError` unless a gradient is floating point."""
    if not jnp.issubdtype(g.dtype, jnp.floating):
        raise TypeError(
            f"Gradient {name!r} has dtype {g.dtype}; optimizers here need floating-point "
            "gradients. Leave it out with `optax.masked` or `optax.partition`."
        )


def check_learning_rate(name, learning_rate):
    """Raises `TypeError` for None, which only a building block may have."""
    if learning_rate is None:
        raise TypeError(
            "`learning_rate` must be a number or a schedule, got None. For the direction alone use "
            f"`scale_by_{name}`."
        )


def check_param(name, g, p):
    """Raises `ValueError` unless parameter and gradient have the same shape."""
    if p is not None and p.shape != g.shape:
        raise ValueError(
            f"Parameter {name!r} has shape {p.shape}, but its gradient has {g.shape}. Call "
            "`tx.update(grads, state, params)` with the parameters that the gradients are of."
        )


def check_leaf(c, name, g, values, absmaxes):
    """Raises `ValueError` where a gradient and its state do not belong together."""
    fields = [slot.name for slot in c.rule.slots]
    for field, x, absmax in zip(fields, values, absmaxes, strict=True):
        if x.shape != g.shape:
            raise ValueError(
                f"State leaf {field}[{name!r}] has shape {x.shape}, but the gradient has "
                f"{g.shape}. Make a new state with `tx.init(params)`."
            )
        if x.dtype != jnp.uint8:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"State leaf {field}[{name!r}] has dtype {x.dtype}; it should be uint8 codes "
                    "or floating point. Make a new state with `tx.init(params)`."
                )
            continue
        expected = absmax_shape(x.shape, c.block_size)
        if absmax is None or absmax.shape != expected:
            has = "no scales" if absmax is None else f"scales of shape {absmax.shape}"
            raise ValueError(
                f"State leaf {field}[{name!r}] has {has}; its codes of shape {x.shape} need "
                f"{expected}. Make a new state with `tx.init(params)`."
            )
