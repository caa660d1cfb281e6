"""Clipping by the global norm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from optax_lamblion._mesh import regions
from optax_lamblion._mesh.one_mesh import check_one_mesh
from optax_lamblion._optimizers import norms
from optax_lamblion._optimizers.scaled import request_of
from optax_lamblion._optimizers.settings import check_positive, check_scalar
from optax_lamblion._state.checks import check_gradient
from optax_lamblion._state.names import path_string
from pallas_kernels.arithmetic.dtypes import compute_dtype
from pallas_kernels.arithmetic.step import root


def clip_by_global_norm(
    max_norm: optax.ScalarOrSchedule, *, norm_axes: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the global norm of the gradients, without writing clipped gradients.

    Like `optax.clip_by_global_norm`, but under `apply_fused` no scaled gradients are written: the
    optimizer of this package that follows multiplies each gradient as it reads it. With bfloat16,
    clipping and `lion8bit` then move 10.03 bytes per parameter instead of 14.03. A
    `percentile_clipping` or `clip_by_percentile` that follows reuses the norms instead of computing
    them again (except for `StateOptions.stacked` leaves, whose layers have their own norms).

    .. math::
      \|g\| &= \sqrt{\textstyle\sum_i \|g_i\|^2} \\
      g_i &\leftarrow g_i \cdot \begin{cases} 1 & \|g\| < c \\ c / \|g\| & \text{else} \end{cases}

    Norms are computed in float32 (float64 for float64 gradients). For float32 gradients on one
    device, the results are Optax's to the last bit. For float16 and bfloat16, Optax sums squares in
    that dtype; here, float16 doesn't overflow at a norm of 256, and a gradient is rounded once
    instead of three times. On meshes, the last digits of a norm depend on the order of summation,
    and under `apply_fused` a gradient is multiplied by :math:`c / \|g\|` instead of divided first.

    Non-finite gradients are treated as in Optax. A NaN anywhere makes all gradients NaN. An
    infinity, or a norm whose square exceeds float32, turns infinities into NaN and everything else
    into zeros. The optimizers of this package skip NaN elements; for zeros they take a step with
    their moments and weight decay. `StateOptions.count_skipped` counts the skipped ones.

    Args:
      max_norm: :math:`c`, a positive number or a schedule; infinity clips nothing.
      norm_axes: Needed inside `jax.shard_map(..., check_vma=False)` and `jax.pmap`, where types
        don't tell how gradients are sharded: the names of the mesh axes over which all gradients
        are sharded, such as `("data",)`; or, if they differ, a tree with the `PartitionSpec` of
        each. A replicated gradient has `PartitionSpec()`; `()` means that all are replicated.

    Returns:
      An `optax.GradientTransformationExtraArgs`.

    State:
      None, so checkpoints are interchangeable with those of `optax.clip_by_global_norm`. With a
      schedule, `optax.ScaleByScheduleState`, whose count takes 4 bytes.

    Raises:
      TypeError: `max_norm` is not a number or a schedule, or a schedule returns something else;
        `norm_axes` has neither names nor a `PartitionSpec`; a gradient is not floating point.
      ValueError: `max_norm` is not positive; gradients are on several meshes; it is unknown how
        they are sharded.

    Examples:
      >>> tx = optax.chain(clip_by_global_norm(1.0), lion8bit(0.1, weight_decay=0.1))
      >>> params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([0.5])}
      >>> state = tx.init(params)
      >>> grads = {"w": jnp.array([30.0, -40.0]), "b": jnp.array([0.0])}
      >>> params, state = apply_fused(tx, params, grads, state)
      >>> params["w"], state[1].mu["w"]  # a hundredth of the clipped gradient
      (Array([0.89, 2.08], dtype=float32), Array([ 0.006, -0.008], dtype=float32))

    References:
      Pascanu et al., `On the difficulty of training Recurrent Neural Networks
      <https://arxiv.org/abs/1211.5063>`_, 2012, Algorithm 1.
    """
    check_positive("max_norm", max_norm)
    _check_norm_axes(norm_axes)

    def init(params):
        del params
        if callable(max_norm):
            return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        del params
        limit: Any = max_norm
        if callable(max_norm):
            limit = max_norm(state.count)
            check_scalar("max_norm", limit)
            state = state._replace(count=optax.safe_increment(state.count))
        rows, tree = jax.tree_util.tree_flatten_with_path(updates)
        grads = [g for _, g in rows]
        _check_gradients(rows, norm_axes)
        axes = _axes_of_leaves(norm_axes, updates)
        return tree.unflatten(_clipped(grads, limit, axes, request_of(extra_args))), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_gradients(rows, norm_axes):
    for path, g in rows:
        check_gradient(path_string(path), g, None)
    check_one_mesh((path_string(path), [g]) for path, g in rows)
    regions.check_norm_axes([g for _, g in rows], norm_axes, "norm_axes={}")


_IS_SPEC = dict(is_leaf=lambda x: isinstance(x, PartitionSpec))


def _are_names(norm_axes):
    return isinstance(norm_axes, tuple | list) and all(isinstance(x, str) for x in norm_axes)


def _check_norm_axes(norm_axes):
    if norm_axes is None or _are_names(norm_axes):
        return
    for spec in jax.tree.leaves(norm_axes, **_IS_SPEC):
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                "`norm_axes` must be a tuple of names of mesh axes, such as "
                '`norm_axes=("data",)`, or a tree of `jax.sharding.PartitionSpec` like the '
                f"gradients, and has {spec!r}."
            )


def _axes_of_leaves(norm_axes, updates):
    """The mesh axes that divide every gradient, in the order of leaves; None if types say it."""
    if norm_axes is None or _are_names(norm_axes):
        return norm_axes
    try:
        specs = jax.tree.leaves(jax.tree.broadcast(norm_axes, updates, **_IS_SPEC), **_IS_SPEC)
    except ValueError as error:
        raise ValueError(
            "`norm_axes` must have a `PartitionSpec` for every gradient, or for a tree of them: "
            f"{' '.join(str(error).split())}"
        ) from None
    return [_names(spec) for spec in specs]


def _names(spec):
    entries = ((x,) if isinstance(x, str) else x or () for x in spec)
    return tuple(name for names in entries for name in names)


def _clipped(grads, limit, axes, request):
    """The gradients, scaled to a norm of `limit` where that of all of them is not below it."""
    if not grads:
        return grads
    squared = norms.squared_norms([request.origin(g) for g in grads], axes)
    norm = root(functools.reduce(jnp.add, squared))
    limit = jnp.asarray(limit).astype(norm.dtype)
    below = norm < limit
    # Where nothing is divided by it, a norm of 0 would make the derivative NaN.
    divisor = jnp.where(below, 1, norm)
    scale = jnp.where(below, 1, limit / divisor)

    def clipped(g, squared):
        dtype = compute_dtype(g.dtype)
        # In Optax's order, for the same bits.
        new = (g.astype(dtype) / divisor.astype(dtype)) * limit.astype(dtype)
        new = jnp.where(below, g, new.astype(g.dtype))
        return request.note(new, g, scale, jnp.square(scale * root(squared)))

    return [clipped(*row) for row in zip(grads, squared, strict=True)]
