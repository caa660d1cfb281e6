"""Regions: where a step runs if arrays are shards there, and what is added up over all of them."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

_STATIC = dict(static=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Region:
    """Where a step runs, if arrays are shards there; a pytree of places."""

    divided: tuple[frozenset[str], ...] = dataclasses.field(default=(), metadata=_STATIC)
    """For every leaf, the mesh axes over which it is divided."""
    axes: tuple[str, ...] = dataclasses.field(default=(), metadata=_STATIC)
    """All mesh axes over which some leaf is."""
    late: bool = dataclasses.field(default=False, metadata=_STATIC)
    """Whether it is traced when XLA divides the program: JAX's types and annotations of memories do
    not reach there."""
    places: tuple[Any, ...] = ()
    """The `Place` of the shard of every leaf; None where it is not known, or is all of it."""

    def of(self, numbers):
        """The region of these leaves alone."""
        if not self.divided:
            return self
        places = tuple(self.places[i] for i in numbers)
        divided = tuple(self.divided[i] for i in numbers)
        return dataclasses.replace(self, divided=divided, places=places)

    def total(self, leaves, sums):
        """Adds up what devices have summed up over their shards, with one all-reduce for all.

        Args:
          leaves: Numbers of leaves.
          sums: An array for each; `(layers, ...)` if the leaf is a stack that is divided by layers.
        """
        if not self.axes:
            return sums
        parts = [
            self._once(i, self._at_its_layers(i, x)) for i, x in zip(leaves, sums, strict=True)
        ]
        total = lax.psum(jnp.concatenate([x.reshape(-1) for x in parts]), self.axes)
        pieces = jnp.split(total, list(itertools.accumulate(x.size for x in parts[:-1])))
        totals = [piece.reshape(x.shape) for piece, x in zip(pieces, parts, strict=True)]
        return [
            self._own_layers(i, x, y.shape) for i, x, y in zip(leaves, totals, sums, strict=True)
        ]

    def _once(self, leaf, sums):
        """Zeros on all but one of the devices that have the same shard."""
        for axis in self.axes:
            if axis not in self.divided[leaf]:
                sums = jnp.where(lax.axis_index(axis) == 0, sums, 0)
        return sums

    def _layers(self, leaf, sums):
        """`(layers of the leaf, the first one here)`, or None if all of them are here."""
        place = self.places[leaf]
        if sums.ndim < 2 or place is None or place.offsets[0] is None:
            return None
        return place.shape[0], place.offsets[0].astype(jnp.int32)

    def _at_its_layers(self, leaf, sums):
        if (layers := self._layers(leaf, sums)) is None:
            return sums
        whole = jnp.zeros((layers[0], *sums.shape[1:]), sums.dtype)
        return lax.dynamic_update_slice_in_dim(whole, sums, layers[1], 0)

    def _own_layers(self, leaf, total, shape):
        if total.shape == shape:
            return total
        _, first = self._layers(leaf, total)  # pyright: ignore[reportGeneralTypeIssues]
        return lax.dynamic_slice_in_dim(total, first, shape[0])


def mesh_of(tree):
    """The mesh that the types of arrays name, if it is of several devices, or None."""
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(tree)]
    return next((mesh for mesh in meshes if mesh.size > 1), None)


def manual_region(mesh, arrays, norm_axes):
    """The `Region` of a function that is mapped over devices already."""
    if norm_axes is None:
        divided = tuple(jax.typeof(x).manual_axis_type.varying for x in arrays)
        axes = tuple(a for a in mesh.axis_names if any(a in names for names in divided))
    else:
        of_leaves = axes_of_leaves(norm_axes, len(arrays))
        divided = tuple(map(frozenset, of_leaves))
        axes = tuple(dict.fromkeys(itertools.chain.from_iterable(of_leaves)))
    return Region(divided, axes, places=(None,) * len(arrays))


def axes_of_leaves(norm_axes, number):
    """The names of mesh axes for every leaf, from those of all leaves or of every one.

    Of all leaves: one that is not divided counts several times then, which no ratio of norms shows.
    """
    names_of_all = all(isinstance(x, str) for x in norm_axes)
    return [tuple(norm_axes)] * number if names_of_all else list(norm_axes)


def check_norm_axes(arrays, norm_axes, argument="options=StateOptions(norm_axes={})"):
    """Raises `ValueError` where nothing says over which axes norms are to be added up.

    `argument` is how to say it, of which `{}` are the names.
    """
    mesh = mesh_of(arrays)
    if mesh is None or norm_axes is not None:
        return
    manual = sorted(axes_of_kind(mesh, AxisType.Manual))
    # Where JAX keeps track of what differs between devices, the number of a device does.
    if manual and not jax.typeof(lax.axis_index(manual[0])).manual_axis_type.varying:
        raise ValueError(
            "This optimizer needs the norm of every parameter or gradient, and inside of "
            "`jax.shard_map(..., check_vma=False)` or `jax.pmap` nothing says whether an array is "
            f"all of one or a shard. Name the mesh axes (here {', '.join(manual)}) over which they "
            f"""are divided, for example `{argument.format(f'("{manual[0]}",)')}`; """
            "`norm_axes=()` says that they are whole on every device. Or leave `check_vma` on."
        )


def axes_of_kind(mesh, kind):
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, of_axis in pairs if of_axis == kind}
