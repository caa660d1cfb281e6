r"""Percentile clipping: a gradient norm is held to a percentile of the last hundred.

The history is a ring of squared norms. At step `t` (from 1) the squared norm goes to place
`t mod 100`, the first one to all places; the gradient is scaled by `clip / norm` where
`clip = sqrt(sort(history)[percentile])` is smaller than its norm. A norm of 0 is not recorded.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from optax_lamblion._mesh import regions
from optax_lamblion._mesh.one_mesh import check_one_mesh
from optax_lamblion._optimizers import norms
from optax_lamblion._optimizers.scaled import request_of
from optax_lamblion._state.names import path_string
from optax_lamblion._state.types import HISTORY, ClipByPercentileState


def check_percentile(percentile, name="percentile_clipping"):
    """Raises unless it is None, a whole number from 0 to 100, or a traced value."""
    if percentile is None or isinstance(percentile, jax.Array):
        return
    if isinstance(percentile, bool) or not isinstance(percentile, int):
        raise TypeError(
            f"`{name}` must be an int from 0 to 100, got {percentile!r}. For the "
            "fifth percentile pass 5, to switch clipping off pass None."
        )
    if not 0 <= percentile <= 100:
        raise ValueError(f"`{name}` must be from 0 to 100, got {percentile}. None and 100 are off.")


def record(history, squared, count, percentile):
    """Takes the squared norm of step `count` in: `(history, scale)` for the gradient.

    Of a stack both have a leading axis for its layers.
    """
    if squared.ndim:
        return jax.vmap(record, (0, 0, None, None))(history, squared, count, percentile)
    # A norm of 0 says nothing about the next one: it is that of a leaf without gradient yet, or of
    # a gradient that overflowed. Recorded, it would clip the gradients after it to nothing.
    first = jnp.max(history) == 0
    recorded = jnp.where(first, squared, history.at[count % HISTORY].set(squared))
    history = jnp.where(squared > 0, recorded, history)
    ranked = jnp.sort(history)[jnp.clip(percentile, 0, HISTORY - 1)]
    clipped = squared > ranked
    scale = jnp.sqrt(ranked) / jnp.sqrt(jnp.where(clipped, squared, 1))
    return history, jnp.where(clipped, scale, 1)


def clip_by_percentile(
    percentile: int = 5, *, scope: Literal["tensor", "global"] = "tensor"
) -> optax.GradientTransformationExtraArgs:
    r"""Clips gradients to a percentile of their last 100 norms.

    An adaptive threshold for clipping. With `percentile=5`, a gradient whose norm exceeds the sixth
    smallest of the last hundred is scaled down to it, so nearly every step is clipped a little, and
    outliers a lot. The argument `percentile_clipping` of this package's optimizers does the same;
    this is a separate transformation.

    .. math::
      h_{t \,\bmod\, 100} &= \|g_t\|^2 \\
      g &\leftarrow g \cdot \min(1, \sqrt{\operatorname{sort}(h)_k} / \|g_t\|)

    Args:
      percentile: int from 0 to 98, the index `k` in the sorted history; 99 is the largest norm and
        clips nothing, and 100 turns clipping off.
      scope: `"tensor"` compares each leaf with its own history, as bitsandbytes did;
        `"global"` compares the norm of all leaves together.

    Returns:
      An `optax.GradientTransformationExtraArgs`.

    State:
      400 bytes per leaf, or 400 bytes in total with `scope="global"`.

    Raises:
      TypeError: `percentile` is not an int.
      ValueError: `percentile` is out of range, or `scope` unknown.

    Examples:
      >>> tx = optax.chain(clip_by_percentile(5), optax.sgd(0.1))
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> state = tx.init(params)
      >>> _, state = tx.update({"w": jnp.array([3.0, 4.0])}, state)
      >>> updates, state = tx.update({"w": jnp.array([30.0, 40.0])}, state)
      >>> updates["w"]
      Array([-0.3, -0.4], dtype=float32)
    """
    check_percentile(percentile, "percentile")
    if percentile is None:
        raise TypeError("`percentile` must be an int from 0 to 100, got None.")
    if scope not in ("tensor", "global"):
        raise ValueError(f'`scope` must be "tensor" or "global", got {scope!r}.')

    def init(params):
        fresh = jnp.zeros([HISTORY], jnp.float32)
        history = fresh if scope == "global" else jax.tree.map(lambda _: fresh, params)
        return ClipByPercentileState(jnp.zeros([], jnp.int32), history)

    def update(updates, state, params=None, **extra_args):
        del params
        if isinstance(percentile, int) and percentile == 100:
            return updates, state
        count = optax.safe_increment(state.count)
        rows, treedef = jax.tree_util.tree_flatten_with_path(updates)
        grads = [g for _, g in rows]
        check_one_mesh((path_string(path), [g]) for path, g in rows)
        regions.check_norm_axes(grads, None)
        request = request_of(extra_args)
        origins = [request.origin(g) for g in grads]
        squared = treedef.unflatten(norms.squared_norms_of_finite(origins))
        if scope == "global":
            total = sum(jax.tree.leaves(squared), jnp.zeros([], jnp.float32))
            total = jnp.minimum(total, jnp.finfo(jnp.float32).max)
            history, scale = record(state.gnorm_history, total, count, percentile)
            scales = jax.tree.map(lambda _: scale, updates)
        else:
            pairs = jax.tree.map(
                lambda n2, h: record(h, n2, count, percentile), squared, state.gnorm_history
            )
            history, scales = _unzip(squared, pairs)

        def scaled(g, scale):
            # A gradient that is not finite stays so, for whoever handles it further on.
            clipped = jnp.where(jnp.isfinite(g), g * scale.astype(g.dtype), g)
            return request.note(clipped, g, scale)

        updates = jax.tree.map(scaled, updates, scales)
        return updates, ClipByPercentileState(count, history)

    return optax.GradientTransformationExtraArgs(init, update)


def _unzip(like, pairs):
    return jax.tree.transpose(jax.tree.structure(like), jax.tree.structure((0, 0)), pairs)
