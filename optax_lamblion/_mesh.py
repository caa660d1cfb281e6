"""Meshes: a step on many devices is every device's step of the shards that it has.

XLA does not divide a kernel by itself: it would gather all of its operands everywhere. So the step
of all leaves is put into a region in which arrays are shards. Which way it goes in depends on what
a type says of the mesh:

- no mesh, or a single device: there are no shards.
- Auto axes: how arrays are divided is known when XLA divides the program. It asks back then
  (`custom_partitioning`).
- Explicit axes: types say how arrays are divided, and the region is a `jax.shard_map`.
- Manual axes: this is a region already, the user's `jax.shard_map` or `jax.pmap`.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    custom_partitioning,
)
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from optax_lamblion._splits import axes_of

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


def on_shards(program, args, arrays, norm_axes=None):
    """Calls a program where every device has its shards of the arguments.

    Args:
      program: A `Program`.
      args: A list with a tree of arrays for every leaf.
      arrays: Of every leaf one array that is divided as the leaf is.
      norm_axes: `StateOptions.norm_axes`.
    """
    mesh = mesh_of(args)
    if mesh is None:
        return program.run(Region(), args)
    kinds = set(mesh.axis_types)
    if AxisType.Manual in kinds:
        return program.run(_manual_region(mesh, arrays, norm_axes), args)
    args = jax.tree.map(jnp.asarray, args)
    return (_in_explicit if AxisType.Explicit in kinds else _in_auto)(program, mesh, args)


def mesh_of(tree):
    """The mesh that the types of arrays name, if it is of several devices, or None."""
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(tree)]
    return next((mesh for mesh in meshes if mesh.size > 1), None)


def _manual_region(mesh, arrays, norm_axes):
    """The `Region` of a function that is mapped over devices already."""
    if norm_axes is None:
        divided = tuple(jax.typeof(x).manual_axis_type.varying for x in arrays)
        axes = tuple(a for a in mesh.axis_names if any(a in names for names in divided))
    else:
        # A leaf that is not divided counts several times, which no ratio of norms shows.
        divided, axes = (frozenset(norm_axes),) * len(arrays), tuple(norm_axes)
    return Region(divided, axes, places=(None,) * len(arrays))


def check_norm_axes(arrays, norm_axes):
    """Raises `ValueError` where nothing says over which axes norms are to be added up."""
    mesh = mesh_of(arrays)
    if mesh is None or norm_axes is not None:
        return
    manual = sorted(_axes_of_kind(mesh, AxisType.Manual))
    # Where JAX keeps track of what differs between devices, the number of a device does.
    if manual and not jax.typeof(lax.axis_index(manual[0])).manual_axis_type.varying:
        raise ValueError(
            "This optimizer needs the norm of every parameter, and inside of "
            "`jax.shard_map(..., check_vma=False)` or `jax.pmap` nothing says whether an array is "
            f"all of a parameter or a shard. Name the mesh axes (here {', '.join(manual)}) over "
            "which parameters are divided, for example "
            f'`options=StateOptions(norm_axes=("{manual[0]}",))`; `norm_axes=()` says that they '
            "are whole on every device. Or leave `check_vma` on."
        )


# ------------------------------------------------------------------------------ ways into a region


class Program(Protocol):
    """What is run in a region. Hashable, and equal to others that do the same.

    - `run(region, args)` is what it does on this device.
    - `plain(args)` is what it does without kernels, which XLA can divide; `kernels_only(args)` says
      that this is not to be used.
    - `splits(sizes, args, axes)` is the `Split` of every leaf on a mesh with axes of these sizes;
      `axes(x)` are the mesh axes that divide every axis of an array.
    - `local(region, splits, args)` are arguments for `run` that know of their place.
    - `specs(splits, args, wrap)` are trees of partition specs of arguments and results, of each of
      which `wrap` makes something.
    - `rule(devices, args)` tells Shardy which axes belong together.
    - `restore(mesh, args, results)` puts results where arguments are, on a mesh with Explicit axes.
    """

    run: Any
    plain: Any
    kernels_only: Any
    splits: Any
    local: Any
    specs: Any
    rule: Any
    restore: Any


def _run_on_shards(program, mesh, splits, late, args):
    used = {name for split in splits for name in split.names}
    axes = tuple(name for name in mesh.axis_names if name in used)
    places = tuple(split.place() for split in splits)
    region = Region(tuple(split.names for split in splits), axes, late, places)
    return program.run(region, program.local(region, splits, args))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _in_explicit(program: Program, mesh, args):
    def axes(x):
        return axes_of(jax.typeof(x).sharding.spec, x.ndim)

    splits = program.splits(dict(mesh.shape), args, axes)
    given, results = program.specs(splits, args, lambda spec: spec)
    run = jax.shard_map(
        functools.partial(_run_on_shards, program, mesh, splits, False),
        mesh=mesh,
        in_specs=(given,),
        out_specs=results,
        axis_names=_axes_of_kind(mesh, AxisType.Explicit),
        check_vma=False,
    )
    there = jax.tree.map(lambda x, spec: reshard(x, mesh, spec), args, given)
    return program.restore(mesh, args, run(there))


def _axes_of_kind(mesh, kind):
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, of_axis in pairs if of_axis == kind}


def reshard(x, mesh, spec):
    """An array on a mesh with Explicit axes, divided by another partition spec."""
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _in_auto(program: Program, mesh, args):
    devices = mesh.size
    none = AbstractMesh((), (), abstract_device=mesh.abstract_device)
    operation = custom_partitioning(program.plain)

    def partition(mesh, given, results):
        def axes(x):
            return axes_of(x.sharding.spec, len(x.shape))

        (args,) = given
        splits = program.splits(dict(mesh.shape), args, axes)
        given, results = program.specs(splits, args, lambda spec: NamedSharding(mesh, spec))

        def run(args):
            # Types of what is computed there would name the mesh of the program, those of
            # arguments none.
            with jax.sharding.use_abstract_mesh(none):
                return _run_on_shards(program, mesh, splits, True, args)

        return mesh, run, results, (given,)

    operation.def_partition(partition=partition, sharding_rule=program.rule(devices, args))
    return _with_rules(operation, program)(args)


def _with_rules(operation, program):
    """An operation that is not mapped or differentiated, but what it stands for is, by XLA."""

    def plain(args):
        if program.kernels_only(args):
            raise ValueError(
                '`implementation="mosaic"` on a mesh with Auto axes is neither mapped nor '
                "differentiated. Use `implementation=None`, with which XLA makes such a step."
            )
        return program.plain(args)

    @jax.custom_batching.custom_vmap
    def mapped(args):
        # On a TPU `custom_partitioning` does not work (jax#38196).
        return lax.platform_dependent(args, tpu=program.plain, default=operation)

    @mapped.def_vmap
    def map_plain(axis_size, batched, args):
        axes = jax.tree.map(lambda x: 0 if x else None, batched)
        out = jax.vmap(plain, in_axes=(axes[0],), axis_size=axis_size)(args)
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def differentiated(args):
        return mapped(args)

    @differentiated.defjvp
    def differentiate_plain(args, tangents):
        return jax.jvp(plain, args, tangents)

    return differentiated


def factors(prefix, shape, block_size, devices):
    """For Shardy, the factors of a leaf's axes and of its scales', and the sizes of some of them.

    An axis is one factor. Where it is divided into blocks it has two, and shares the outer one with
    the scales; if any number of devices divides it, or Shardy would give some a part of an axis of
    the mesh.
    """
    names: list[Any] = [f"{prefix}{i}" for i in range(len(shape))]
    whole, outer = prefix + "scales", prefix + "blocks"
    if not shape or not block_size or 0 in shape:
        return ArrayMapping(*names), ArrayMapping(whole), {}
    if shape[-1] % block_size == 0:
        scales, axis, count, units = (
            [*names[:-1], outer],
            -1,
            shape[-1] // block_size,
            (block_size, 1),
        )
    else:
        rest = math.prod(shape[1:])
        rows = math.lcm(rest, block_size) // rest  # the fewest that are whole blocks
        if shape[0] % rows:
            return ArrayMapping(*names), ArrayMapping(whole), {}
        scales, axis, count, units = [outer], 0, shape[0] // rows, (rows, rows * rest // block_size)
    if count % devices:
        return ArrayMapping(*names), ArrayMapping(*scales[:-1], whole), {}
    # Shardy wants to know the sizes of factors that are nowhere a whole axis.
    sizes = {} if 1 in units else {outer: count}
    axes: list[Any] = [outer, outer]
    for i, unit in enumerate(units):
        if unit > 1:
            sizes[inner := f"{outer}_{i}"] = unit
            axes[i] = CompoundFactor(outer, inner)
    names[axis], scales[-1] = axes
    return ArrayMapping(*names), ArrayMapping(*scales), sizes
