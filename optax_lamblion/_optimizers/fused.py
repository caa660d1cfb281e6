"""One step that returns parameters: `apply_fused`.

The request to do so travels through `optax.chain` and the other wrappers as an extra argument of
`update` (see `scaled`). An optimizer of this package answers it with parameters in place of
updates, each in a box that is no array and no pytree: a transformation that comes after it and
would scale or add to updates cannot mistake parameters for them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_lamblion._optimizers.scaled import REQUEST, Request
from pallas_kernels.arithmetic.dtypes import compute_dtype


class Applied:
    """A box around a parameter that has made its step. Arithmetic with it raises."""

    def __init__(self, params):
        self.params = params

    def _refuse(self, *args):
        raise TypeError(
            "A transformation that comes after an optimizer of `optax_lamblion` reached its "
            "result, which under `apply_fused` is new parameters and not updates. Put the "
            "optimizer last in `optax.chain`, or use `tx.update` and `optax.apply_updates`."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __abs__ = __array__ = _refuse
    dtype = shape = property(_refuse)


# They choose between new and old values, or count on zero updates, with arrays as conditions.
_BRANCHING = (
    optax.MultiStepsState,
    optax.ApplyIfFiniteState,
    optax.ConditionallyMaskState,
    optax.ConditionallyTransformState,
)


def apply_fused(
    tx: optax.GradientTransformation,
    params: optax.Params,
    grads: optax.Updates,
    state: optax.OptState,
    *,
    grad_scale: ArrayLike | None = None,
    **extra_args: Any,
) -> tuple[optax.Params, optax.OptState]:
    r"""One optimizer step: `(params, state)` from `(params, grads, state)`.

    Does the same as `tx.update` and `optax.apply_updates`, for any Optax transformation. If the
    last transformation (in `optax.chain`, `optax.masked`, `optax.partition`,
    `optax.inject_hyperparams`) is an optimizer of this package, it writes the parameters itself and
    never materialises the updates: `lion8bit` then needs no memory beyond parameters, gradients and
    state.

    After this package's `clip_by_global_norm` and `clip_by_percentile`, such an optimizer reads the
    original gradients and scales them on the fly, so a compiled step writes no scaled gradients.

    Donate `params` and `state` to the jitted function, so that both are updated in place.

    Args:
      tx: Any Optax transformation.
      params: Parameters.
      grads: Gradients, in the structure of the parameters.
      state: The state of `tx`.
      grad_scale: A positive scalar that multiplies all gradients before `tx` sees them, such as
        `1 / loss_scale`. None means 1. Clipping uses the norm of the scaled gradients. Optimizers
        and clipping of this package multiply in float32, without an additional pass. Other
        transformations get gradients rounded to their own dtype; pass float32 gradients if scaled
        float16 ones would underflow. Non-finite elements stay non-finite: this package's optimizers
        skip them, and `StateOptions.count_skipped` counts them.
      **extra_args: Passed on to `tx.update`.

    Returns:
      `(params, state)`. The parameters equal those of `optax.apply_updates` up to rounding (2 units
      in the last place), because the update is added before it is rounded to their dtype.
      Transformations that select between states (`optax.MultiSteps`, `optax.apply_if_finite`,
      `optax.transforms.conditionally_transform`, `conditionally_mask`) run as `update` and
      `apply_updates`.

    Raises:
      TypeError: A transformation after an optimizer of this package operates on updates; gradients
        and state were swapped; or `grad_scale` is not a real number.
      ValueError: `grad_scale` is not positive or not finite (checked for Python numbers).

    Examples:
      >>> tx = optax.chain(clip_by_global_norm(1.0), lion8bit(0.1, weight_decay=0.1))
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> step = jax.jit(lambda p, g, s: apply_fused(tx, p, g, s), donate_argnums=(0, 2))
      >>> params, state = step(params, jnp.array([0.5, -0.5]), state)
      >>> params
      Array([0.89, 2.08], dtype=float32)
    """
    ours = jax.tree.structure(params)
    if jax.tree.structure(state) == ours != jax.tree.structure(grads):
        raise TypeError(
            "`apply_fused` got a state that is a tree like the parameters, and gradients that are "
            "none. The third argument is the gradients: `apply_fused(tx, params, grads, state)`."
        )
    tx = optax.with_extra_args_support(tx)
    request = Request()
    if grad_scale is not None:
        grads = _scaled(grads, grad_scale, request)
    if _branches(state):
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state
    updates, state = tx.update(grads, state, params, **{REQUEST: request}, **extra_args)

    def merge(update, param):
        if isinstance(update, Applied):
            return update.params
        return optax.apply_updates(param, update) if update is not None else param

    return jax.tree.map(merge, updates, params, is_leaf=lambda x: x is None), state


def _scaled(grads, scale, request):
    """Gradients times a scale, noted in a request."""
    _check_grad_scale(scale)
    scale = jnp.asarray(scale)

    def scaled(g):
        # What is no floating-point array is refused by name, or left alone, by who gets it.
        if not (hasattr(g, "dtype") and jnp.issubdtype(g.dtype, jnp.inexact)):
            return g
        dtype = compute_dtype(g.dtype)
        return request.note((g.astype(dtype) * scale.astype(dtype)).astype(g.dtype), g, scale)

    return jax.tree.map(scaled, grads)


def _check_grad_scale(scale):
    known = isinstance(scale, int | float | np.number) and not isinstance(scale, bool)
    dtype = np.dtype(type(scale)) if known else getattr(scale, "dtype", np.dtype(bool))
    is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if not is_real or jnp.shape(scale):
        raise TypeError(
            "`grad_scale` must be one real number, such as `1 / loss_scale`, got "
            f"{scale!r}. A schedule is called where the step is made: `grad_scale=schedule(step)`."
        )
    if known and not 0 < float(scale) < math.inf:
        raise ValueError(f"`grad_scale` must be positive and finite, got {scale}.")


def _branches(state):
    found = []

    def stop(node):
        found.append(isinstance(node, _BRANCHING))
        return found[-1]

    jax.tree.leaves(state, is_leaf=stop)
    return any(found)
