r"""Percentile clipping: a gradient norm is held to a percentile of the last hundred.

The history is a ring of squared norms. At step `t` (from 1) the squared norm goes to place
`t mod 100`, the first one to all places; the gradient is scaled by `clip / norm` where
`clip = sqrt(sort(history)[percentile])` is smaller than its norm. A norm of 0 is not recorded.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule
from jax.sharding import PartitionSpec

from optax_lamblion._mesh import regions, shardy, ways_in
from optax_lamblion._mesh.one_mesh import check_one_mesh
from optax_lamblion._mesh.splits import split_for
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


def squared_norms(grads, stacked=None, norm_axes=None):
    """The squared Euclidean norm of the finite elements of every gradient, as a finite float32.

    Where gradients are divided over devices, those are norms of the whole ones.

    Args:
      grads: A list of arrays.
      stacked: For every one whether it is a stack of layers, which has a vector of norms.
      norm_axes: `StateOptions.norm_axes`.
    """
    if not grads:
        return []
    regions.check_norm_axes(grads, norm_axes)
    program = _SquaredNorms(tuple(stacked or [False] * len(grads)))
    sums = ways_in.on_shards(program, list(grads), grads, norm_axes)
    return [jnp.minimum(x, jnp.finfo(jnp.float32).max) for x in sums]


class _SquaredNorms(NamedTuple):
    """Sums of squares of gradients, as a `ways_in.Program`."""

    stacked: tuple[bool, ...]

    def run(self, region, grads):
        """The sum for every gradient."""
        sums = [_sum_of_squares(g, stacked) for g, stacked in zip(grads, self.stacked, strict=True)]
        # `Region.total` takes an array of two axes for the sums of a stack of layers.
        sums = [x[:, None] if x.ndim else x for x in sums]
        totals = region.total(range(len(sums)), sums)
        return [x[:, 0] if x.ndim else x for x in totals]

    def plain(self, grads):
        """The same where there are no shards."""
        return self.run(regions.Region(), grads)

    def kernels_only(self, grads):
        """There are none for it."""
        return False

    def splits(self, sizes, grads, axes):
        """The `Split` of every gradient."""
        return [split_for(g.shape, [axes(g)], sizes, None) for g in grads]

    def local(self, region, splits, grads):
        """Gradients know nothing of their place."""
        return grads

    def specs(self, splits, grads, wrap):
        """Partition specs of gradients and of sums; of a stack, where its layers are."""
        results = [
            wrap(split.layers_spec if stacked else PartitionSpec())
            for split, stacked in zip(splits, self.stacked, strict=True)
        ]
        return [wrap(split.spec) for split in splits], results

    def rule(self, devices, grads):
        """Nothing belongs together but layers and their sums."""
        of_grads = [
            shardy.factors(f"g{i}_", g.shape, None, devices)[0] for i, g in enumerate(grads)
        ]
        of_sums = [
            ArrayMapping(*mapping[:1]) if stacked else ArrayMapping()
            for mapping, stacked in zip(of_grads, self.stacked, strict=True)
        ]
        return SdyShardingRule(tuple(of_grads), tuple(of_sums))

    def restore(self, mesh, grads, results):
        """All sums on every device, as histories are."""
        return [ways_in.reshard(x, mesh, PartitionSpec()) for x in results]


def _sum_of_squares(g, stacked):
    g = g.astype(jnp.float32)
    axes = tuple(range(1 if stacked else 0, g.ndim))
    return jnp.sum(jnp.where(jnp.isfinite(g), g * g, 0), axis=axes)


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
    r"""Scales gradients down to a percentile of their own last 100 norms.

    An adaptive threshold for clipping: with `percentile=5`, a gradient whose norm exceeds the sixth
    smallest of the last hundred is scaled to it, so nearly every step is clipped a little and an
    outlier a lot. This is what `percentile_clipping` does inside the optimizers of this package,
    as a transformation of its own.

    .. math::
      h_{t \bmod 100} = \|g_t\|^2, \qquad
      g \leftarrow g \cdot \min\left(1, \sqrt{\operatorname{sort}(h)_k} / \|g_t\|\right)

    Args:
      percentile: int from 0 to 98, the place `k` in the sorted history; 99 is the largest norm and
        clips nothing, 100 is off.
      scope: `"tensor"` compares each leaf with its own history, as bitsandbytes did;
        `"global"` compares the norm of all leaves together.

    Returns:
      An `optax.GradientTransformationExtraArgs`.

    State:
      400 bytes per leaf, or 400 bytes in all with `scope="global"`.

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
        del params, extra_args
        if isinstance(percentile, int) and percentile == 100:
            return updates, state
        count = optax.safe_increment(state.count)
        rows, treedef = jax.tree_util.tree_flatten_with_path(updates)
        grads = [g for _, g in rows]
        check_one_mesh((path_string(path), [g]) for path, g in rows)
        squared = treedef.unflatten(squared_norms(grads))
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
        updates = jax.tree.map(
            # A gradient that is not finite stays so, for whoever handles it further on.
            lambda g, s: jnp.where(jnp.isfinite(g), g * s.astype(g.dtype), g),
            updates,
            scales,
        )
        return updates, ClipByPercentileState(count, history)

    return optax.GradientTransformationExtraArgs(init, update)


def _unzip(like, pairs):
    return jax.tree.transpose(jax.tree.structure(like), jax.tree.structure((0, 0)), pairs)
