"""What a state must be: whether it, its gradients and its parameters belong together.

Shapes and dtypes are looked at in every step, as that costs nothing where a step is compiled;
numbers only where they are known without waiting for a device.
"""

import jax.numpy as jnp
import numpy as np

from optax_lamblion._state.layout import Layout, check_layout, known, refuse_layout
from optax_lamblion._state.types import STATES
from pallas_kernels.arithmetic.blocks import absmax_shape

_MAKE_NEW = "make a new state with `tx.init(params)`"
_CONVERT = (
    "Convert the saved state with `convert_state(state, params, tx)`, or make a new state with "
    "`tx.init(params)`"
)


def check_call(c, updates, state, params):
    """Raises where `update` was given other things than it takes, or in another order."""
    if isinstance(updates, STATES) and not isinstance(state, STATES):
        raise TypeError(
            "The first argument of `update` is a state, and the second is none. Call "
            "`tx.update(grads, state, params)`."
        )
    if params is None and (c.decays or c.rule.ratio):
        why = "the trust ratio" if c.rule.ratio else "weight decay"
        raise ValueError(
            f"`update` needs `params` because {why} uses them. "
            "Call `tx.update(grads, state, params)`."
        )
    if not isinstance(state, c.state_type):
        raise TypeError(
            f"`update` needs the `{c.state_type.__name__}` that `tx.init(params)` returns, got "
            f"{type(state).__name__}. What a checkpoint library restored without a target becomes "
            "one by `convert_state(state, params, tx)`."
        )


def check_state(c, state):
    """Raises `ValueError` where a state was made with other arguments."""
    check_count("count", state.count)
    names = [slot.name for slot in c.rule.slots]
    if "nu_max" not in names and getattr(state, "nu_max", None) is not None:
        raise ValueError(
            "The state has a `nu_max`, which this optimizer does not keep. Build it with "
            f"`amsgrad=True`, or {_MAKE_NEW}."
        )
    if not c.clips and state.gnorm_history is not None:
        raise ValueError(
            "The state has a `gnorm_history`, which this optimizer does not keep. Build it with "
            f"`percentile_clipping`, or {_MAKE_NEW}."
        )
    counts = c.chosen.count_skipped
    if not counts and state.skipped is not None:
        raise ValueError(
            "The state has a count `skipped`, which this optimizer does not keep. Build it with "
            "`options=StateOptions(count_skipped=True)`, or drop the count with "
            "`state._replace(skipped=None)`."
        )
    if (c.layout is not None) != (state.mu_absmax is not None):
        has = Layout(c.chosen.codec, c.block_size) if c.layout is None else None
        refuse_layout(c.layout, has, state.mu)
    if c.layout is not None:
        check_layout(c.layout, state)
    for name in names:
        if getattr(state, name) is None:
            raise ValueError(
                f"The state has no `{name}`, which this optimizer keeps. It was made with other "
                f"arguments; {_MAKE_NEW}."
            )
    if c.clips and state.gnorm_history is None:
        raise ValueError(
            "The state has no `gnorm_history`: it was made without `percentile_clipping`. "
            f"{_MAKE_NEW.capitalize()}."
        )
    if counts and state.skipped is None:
        raise ValueError(
            "The state has no `skipped`: it was made without `StateOptions(count_skipped=True)`. "
            "Let it count from zero with `convert_state(state, params, tx)`, or make a new one "
            "with `tx.init(params)`."
        )
    if counts:
        check_count("skipped", state.skipped)

    if c.keeps_residuals != (state.residual is not None):
        raise ValueError(
            'The state has no `residual`: it was made without `param_rounding="compensated"`. Let '
            "it start at zero with `convert_state(state, params, tx)`, or make a new one with "
            "`tx.init(params)`."
            if c.keeps_residuals
            else "The state has a `residual`, which this optimizer does not keep. Build it with "
            '`options=StateOptions(param_rounding="compensated")`, or leave behind what parameters '
            "have beyond their 16 bits with `convert_state(state, params, tx)`."
        )


def check_count(name, x):
    """Raises `ValueError` unless it is a count: one whole number that is not known as negative."""
    shape, dtype = np.shape(x), x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if shape != () or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"State leaf {name!r} has shape {shape} and dtype {dtype}; it should have shape () and "
            f"dtype int32. {_CONVERT}."
        )
    value = known(x)
    if value is not None and value < 0:
        raise ValueError(f"State leaf {name!r} is {value}, and counts from 0 up. {_CONVERT}.")


# --------------------------------------------------------------------------------- of one leaf


def check_gradient(name, g, p):
    """Raises unless a gradient is a floating-point array of its parameter's shape."""
    if not hasattr(g, "dtype"):
        raise TypeError(
            f"Gradient {name!r} is a {type(g).__name__}; optimizers here need arrays. Make it one "
            "with `jnp.asarray`."
        )
    check_floating("Gradient", name, g.dtype)
    if p is not None and p.shape != g.shape:
        raise ValueError(
            f"Parameter {name!r} has shape {p.shape}, but its gradient has {g.shape}. Call "
            "`tx.update(grads, state, params)` with the parameters that the gradients are of."
        )


_FLOATING = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def check_floating(what, name, dtype):
    """Raises `TypeError` unless optimizers compute with a dtype; `what` is of that name."""
    if dtype in _FLOATING:
        return
    needed = f"{what.lower()}s of float16, bfloat16, float32 or float64"
    remedy = "Leave it out with `optax.masked` or `optax.partition`"
    if jnp.issubdtype(dtype, jnp.complexfloating):
        needed = f"floating-point {what.lower()}s"
        remedy = (
            "Wrap the optimizer in `optax.contrib.split_real_and_imaginary(tx)`, which steps real "
            "and imaginary parts; or leave the leaf out with `optax.masked` or `optax.partition`"
        )
    elif not jnp.issubdtype(dtype, jnp.floating):
        needed = f"floating-point {what.lower()}s"
    else:
        remedy = f"Train a copy in bfloat16 or float32 and cast that to {dtype}; or l{remedy[1:]}"
    raise TypeError(f"{what} {name!r} has dtype {dtype}; optimizers here need {needed}. {remedy}.")


def check_slot(leaf, values, absmax, shape, block_size, *, of, any_floating=False):
    """Raises `ValueError` unless what is stored can be the slot of a leaf.

    Args:
      leaf: What it is called: `"mu['w']"`.
      values: Codes or numbers.
      absmax: Their scales; of numbers in a state that has scales, what stands for them.
      shape: That of the leaf.
      block_size: Elements that share a scale.
      of: What has that shape: "the gradient".
      any_floating: Whether numbers may have another dtype than those of a step.
    """
    shape = tuple(shape)
    for x in (values,) if absmax is None else (values, absmax):
        if not hasattr(x, "dtype"):
            raise ValueError(f"State leaf {leaf} has {x!r} instead of an array. {_CONVERT}.")
    if tuple(values.shape) != shape:
        raise ValueError(
            f"State leaf {leaf} has shape {tuple(values.shape)}, but {of} has {shape}. "
            "It belongs to other parameters; make a new state with `tx.init(params)`, or let the "
            'leaf restart at zero: `convert_state(state, params, tx, missing="fresh")`.'
        )
    scales, unused = absmax_shape(shape, block_size), (1,) * len(shape)
    has = "no scales" if absmax is None else f"scales of shape {tuple(absmax.shape)}"
    if values.dtype == jnp.uint8:
        if absmax is None or tuple(absmax.shape) != scales:
            blocks = "one block" if block_size is None else f"blocks of {block_size}"
            raise ValueError(
                f"State leaf {leaf} has {has}; its codes of shape {shape} need {scales}, for "
                f"{blocks}. {_CONVERT}."
            )
    elif values.dtype not in (_FLOATING if any_floating else (jnp.float32, jnp.float64)):
        numbers = "floating point" if any_floating else "float32"
        raise ValueError(
            f"State leaf {leaf} has dtype {values.dtype}; it should be uint8 codes or {numbers}. "
            f"If it was cast, cast it back. {_CONVERT}."
        )
    elif absmax is not None and tuple(absmax.shape) == scales != unused:
        raise ValueError(f"State leaf {leaf} has dtype {values.dtype}, and {has}: {_WERE_CODES}")
    elif absmax is not None and tuple(absmax.shape) != unused:
        raise ValueError(
            f"State leaf {leaf} has {has}; numbers of shape {shape} have {unused} there. "
            f"{_CONVERT}."
        )
    if absmax is not None and absmax.dtype != jnp.float32:
        raise ValueError(
            f"State leaf {leaf} has scales of dtype {absmax.dtype}; they should be float32. "
            f"{_CONVERT}."
        )


_WERE_CODES = (
    "codes that were cast, which mean nothing as numbers. Cast them back to uint8, or make a new "
    "state with `tx.init(params)`."
)


def check_residual(leaf, x, p, has_residual):
    """Raises `ValueError` unless an array can be the residual of a parameter, or stand for none.

    Args:
      leaf: What the parameter is called.
      x: The array.
      p: The parameter.
      has_residual: Whether it is one that has a residual.
    """
    if not hasattr(x, "dtype"):
        raise ValueError(f"State leaf residual[{leaf!r}] is {x!r}, not an array. {_CONVERT}.")
    shape = tuple(p.shape) if has_residual else (1,) * len(p.shape)
    if tuple(x.shape) != shape or x.dtype != jnp.int8:
        raise ValueError(
            f"State leaf residual[{leaf!r}] has shape {tuple(x.shape)} and dtype {x.dtype}; for a "
            f"parameter of dtype {p.dtype} and shape {tuple(p.shape)} this optimizer needs {shape} "
            f"and int8. {_CONVERT}."
        )


def shapes_tell(values, absmax):
    """Whether shapes tell codes from numbers: scales of one block are shaped as their stand-in."""
    return absmax is None or absmax.shape != (1,) or len(values.shape) != 1


def told_apart(leaf, values, absmax):
    """Values and scale of a leaf of one block, whose shapes do not tell codes from numbers.

    What is neither becomes NaN, so that it is seen, or raises `ValueError` where that is known.
    """
    if values.dtype == jnp.uint8:
        lost = (absmax == 0) & (values != 0).any()
        if known(lost):
            raise ValueError(f"State leaf {leaf} has codes whose scale is zero. {_CONVERT}.")
        return values, jnp.where(lost, jnp.nan, absmax)
    if known(absmax):
        raise ValueError(f"State leaf {leaf} has dtype {values.dtype}, and a scale: {_WERE_CODES}")
    return jnp.where(absmax == 0, values, jnp.nan), absmax


def check_history(leaf, x, shape):
    """Raises `ValueError` unless an array of this shape can be the gradient norms of a leaf."""
    shape = tuple(shape)
    if not hasattr(x, "dtype"):
        raise ValueError(f"State leaf gnorm_history[{leaf!r}] is {x!r}, not an array. {_CONVERT}.")
    if tuple(x.shape) != shape or x.dtype != jnp.float32:
        raise ValueError(
            f"State leaf gnorm_history[{leaf!r}] has shape {tuple(x.shape)} and dtype {x.dtype}; "
            f"this optimizer needs {shape} and float32. {_CONVERT}."
        )
