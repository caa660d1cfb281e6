"""Whether a state, its gradients and its parameters belong together, and to this optimizer."""

import jax.numpy as jnp

from optax_lamblion._state.layout import Layout, check_layout, refuse_layout
from pallas_kernels.arithmetic.blocks import absmax_shape


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
