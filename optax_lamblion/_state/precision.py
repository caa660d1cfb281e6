"""What parameters of 16 bits hold: in full with their residual, and which steps move them."""

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
    """Parameters in float32, with what an optimizer keeps of them beyond their 16 bits.

    For evaluation, export and averages of what was trained with
    `StateOptions(param_rounding="compensated")`. The model itself computes with `params`.

    Args:
      params: Parameters.
      state: The state of the transformation that they were last stepped by, which has one of such
        an optimizer in it.

    Returns:
      A tree like `params`: those in bfloat16 and float16 as float32 arrays on the device, with
      their residual where the state has one; all others as they are.

    Raises:
      ValueError: The state has no residuals, or that of a parameter has another shape.

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
    """Which share of every parameter of 16 bits a step moves, if it is rounded to the nearest.

    An element moves if the step is more than half the way to the next number: about a part in 512
    of it in bfloat16, and in 4096 in float16. Where the share is small, training stalls: see
    `StateOptions.param_rounding`.

    Args:
      params: Parameters.
      step: What is added to them: a tree of updates like `params`; or a number, for steps of this
        size in either direction, as Lion makes them with that learning rate.

    Returns:
      A share from 0 to 1 by the name of every parameter in bfloat16 or float16, such as
      `"encoder/kernel"`. An element whose step is zero counts as one that does not move.

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
