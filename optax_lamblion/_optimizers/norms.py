"""Norms of gradients, of the whole ones where they are divided over devices."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule
from jax.sharding import PartitionSpec

from optax_lamblion._mesh import regions, shardy, ways_in
from optax_lamblion._mesh.splits import split_for
from pallas_kernels.arithmetic.dtypes import compute_dtype


def squared_norms(origins, norm_axes=None):
    """The squared Euclidean norm of every gradient, in float32; in float64 if one of them is that.

    Args:
      origins: A list of `scaled.Origin`.
      norm_axes: Inside of a `jax.shard_map` without types, the mesh axes over which all gradients
        are divided; or a list of them for every gradient.
    """
    dtype = compute_dtype(*(x.raw.dtype for x in origins))
    return _squared(origins, [False] * len(origins), dtype, norm_axes, finite=False)


def squared_norms_of_finite(origins, stacked=None, norm_axes=None):
    """The squared norm of the finite elements of every gradient, as a finite float32.

    Args:
      origins: A list of `scaled.Origin`.
      stacked: For every one whether it is a stack of layers, which has a vector of norms.
      norm_axes: `StateOptions.norm_axes`.
    """
    stacked = stacked or [False] * len(origins)
    sums = _squared(origins, stacked, jnp.float32, norm_axes, finite=True)
    # A norm that was known before is that of all elements. If it is not finite, the global norm was
    # not, and clipping by that has left no element but zeros and NaN.
    sums = [jnp.where(jnp.isnan(x), 0, x) for x in sums]
    return [jnp.minimum(x, jnp.finfo(jnp.float32).max) for x in sums]


def _squared(origins, stacked, dtype, norm_axes, *, finite):
    known: list[Any] = [None if s else x.squared for x, s in zip(origins, stacked, strict=True)]
    new = [i for i, x in enumerate(known) if x is None]
    if not new:
        return [x.astype(dtype) for x in known]
    grads = [origins[i].raw for i in new]
    if norm_axes is not None:
        of_leaves = regions.axes_of_leaves(norm_axes, len(origins))
        norm_axes = [of_leaves[i] for i in new]
    program = _SquaredNorms(tuple(stacked[i] for i in new), jnp.dtype(dtype), finite)
    args = [(origins[i].raw, origins[i].scale) for i in new]
    sums = iter(ways_in.on_shards(program, args, grads, norm_axes))
    return [next(sums) if x is None else x.astype(dtype) for x in known]


class _SquaredNorms(NamedTuple):
    """Sums of squares of gradients times their scales, as a `ways_in.Program`."""

    stacked: tuple[bool, ...]
    dtype: Any
    """That of all sums."""
    finite: bool
    """Whether elements that are not finite are left out."""

    def run(self, region, args):
        """The sum for every gradient."""
        pairs = zip(args, self.stacked, strict=True)
        sums = [self._sum(g, scale, stacked) for (g, scale), stacked in pairs]
        # `Region.total` takes an array of two axes for the sums of a stack of layers.
        sums = [x[:, None] if x.ndim else x for x in sums]
        totals = region.total(range(len(sums)), sums)
        return [x[:, 0] if x.ndim else x for x in totals]

    def _sum(self, g, scale, stacked):
        g = g.astype(self.dtype)
        if scale is not None:
            g = g * jnp.asarray(scale).astype(self.dtype)
        squares = jnp.square(g)
        if self.finite:
            squares = jnp.where(jnp.isfinite(g), squares, 0)
        return jnp.sum(squares, axis=tuple(range(1 if stacked else 0, g.ndim)))

    def plain(self, args):
        """The same where there are no shards."""
        return self.run(regions.Region(), args)

    def kernels_only(self, args):
        """There are none for it."""
        return None

    def splits(self, sizes, args, axes):
        """The `Split` of every gradient."""
        return [split_for(g.shape, [axes(g)], sizes, None) for g, _ in args]

    def local(self, region, splits, args):
        """Gradients know nothing of their place."""
        return args

    def specs(self, splits, args, wrap):
        """Partition specs of gradients and of sums; of a stack, where its layers are."""
        given = [
            (wrap(split.spec), None if scale is None else wrap(PartitionSpec()))
            for split, (_, scale) in zip(splits, args, strict=True)
        ]
        results = [
            wrap(split.layers_spec if stacked else PartitionSpec())
            for split, stacked in zip(splits, self.stacked, strict=True)
        ]
        return given, results

    def rule(self, devices, args):
        """Nothing belongs together but layers and their sums."""
        operands, results = [], []
        for i, ((g, scale), stacked) in enumerate(zip(args, self.stacked, strict=True)):
            mapping, _, _ = shardy.factors(f"g{i}_", g.shape, None, devices)
            operands += [mapping] if scale is None else [mapping, ArrayMapping()]
            results.append(ArrayMapping(*mapping[:1]) if stacked else ArrayMapping())
        return SdyShardingRule(tuple(operands), tuple(results))

    def restore(self, mesh, args, results):
        """All sums on every device, as histories are."""
        return [ways_in.reshard(x, mesh, PartitionSpec()) for x in results]
