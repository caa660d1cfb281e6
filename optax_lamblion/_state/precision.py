"""16-bit parameters: their full value with residuals, and which updates move them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_lamblion._paging.memory import fetch
from optax_lamblion._state.names import path_string
from optax_lamblion._state.types import STATES
from pallas_kernels.arithmetic.params import is_16bit, joined


def full_precision(params: optax.Params, state: optax.OptState) -> optax.Params:
    """Parameters in float32: 16-bit parameters plus the residuals in the optimizer state.

    For evaluation, export and weight averaging after training with
    `StateOptions(param_rounding="compensated")`. The model itself computes with `params`.

    Args:
      params: Parameters.
      state: The state after the step that produced them, from a transformation that contains such
        an optimizer.

    Returns:
      A tree like `params`: bfloat16 and float16 parameters become float32 arrays on the device,
      with their residuals added if the state has any; others are returned unchanged.

    Raises:
      ValueError: The state has no residuals, or a residual has another shape than its parameter.

    Examples:
      >>> options = StateOptions(param_rounding="compensated")
      >>> tx = lion8bit(1e-3, options=options)
      >>> params = {"w": jnp.ones((64, 256), jnp.bfloat16)}
      >>> state = tx.init(params)
      >>> grads = {"w": jnp.ones((64, 256), jnp.bfloat16)}
      >>> params, state = apply_fused(tx, params, grads, state)
      >>> print(params["w"][0, 0], round(float(full_precision(params, state)["w"][0, 0]), 4))
      1 0.999
    """
    residuals = _residuals(state)
    if not residuals:
        raise ValueError(
            "`full_precision` needs the state of an optimizer that keeps what parameters lack of "
            'their value: one with `options=StateOptions(param_rounding="compensated")`. Others '
            "have no more than `params`."
        )

    def full(path, p):
        if not is_16bit(p.dtype):
            return p
        name = path_string(path)
        residual = residuals.get(name)
        if residual is None:
            return p.astype(jnp.float32)
        if residual.shape != p.shape:
            raise ValueError(
                f"Parameter {name!r} has shape {p.shape}, and its residual {residual.shape}: the "
                "state is that of other parameters."
            )
        return joined(p, fetch(residual))

    return jax.tree_util.tree_map_with_path(full, params)


def _residuals(state):
    """The residuals in a state, by the names of their parameters."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, STATES))
    rows = [
        row
        for node in nodes
        if isinstance(node, STATES)
        for row in jax.tree_util.tree_leaves_with_path(node.residual)
    ]
    return {path_string(path): x for path, x in rows}


def share_moved(params: optax.Params, step: Any) -> dict[str, float]:
    """The share of elements of 16-bit parameters that an update moves, rounding to nearest.

    An element moves if its update is more than half the distance to the next number: about one part
    in 512 of its value in bfloat16, and in 4096 in float16. If the share is small, training stalls;
    see `StateOptions.param_rounding`.

    Args:
      params: Parameters.
      step: The update: a tree of updates like `params`; or a number, for updates of this size in
        both directions, like those of Lion with this learning rate.

    Returns:
      A dict from the name of every bfloat16 or float16 parameter, such as `"encoder/kernel"`, to a
      share from 0 to 1. Elements whose update is zero count as not moved.

    Raises:
      ValueError: `step` is a tree of another structure.

    Examples:
      >>> params = {"w": 0.02 * jax.random.normal(jax.random.key(0), (256, 256), jnp.bfloat16)}
      >>> [round(share_moved(params, rate)["w"], 2) for rate in (1e-4, 3e-5, 1e-5)]
      [0.88, 0.31, 0.16]
    """
    rows, tree = jax.tree_util.tree_flatten_with_path(params)
    # The value of a schedule is an array, and so are the updates of a tree that is one array.
    is_scalar = isinstance(step, jax.Array | np.ndarray) and step.ndim == 0
    is_number = isinstance(step, int | float | np.number)
    is_number = is_number or (is_scalar and tree != jax.tree.structure(0))
    steps = jax.tree.map(lambda p: step, params) if is_number else step
    try:
        steps = tree.flatten_up_to(steps)
    except ValueError as error:
        raise ValueError(
            f"`step` must be a number, or a tree of updates like `params`: {error}"
        ) from None
    signs = (1, -1) if is_number else (1,)
    return {
        path_string(path): sum(_share_moved(p, sign * x) for sign in signs) / len(signs)
        for (path, p), x in zip(rows, steps, strict=True)
        if is_16bit(p.dtype)
    }


def _share_moved(p, step):
    moved = (p.astype(jnp.float32) + jnp.asarray(step, jnp.float32)).astype(p.dtype)
    return float(jnp.mean(moved != p))
