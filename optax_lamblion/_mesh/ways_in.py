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

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import (
    custom_partitioning,
)
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from optax_lamblion._mesh.marks import mark
from optax_lamblion._mesh.regions import Region, axes_of_kind, manual_region, mesh_of
from optax_lamblion._mesh.splits import axes_of


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
        return _on_one_device(program, args)
    kinds = set(mesh.axis_types)
    if AxisType.Manual in kinds:
        return program.run(manual_region(mesh, arrays, norm_axes), args)
    args = jax.tree.map(jnp.asarray, args)
    return (_in_explicit if AxisType.Explicit in kinds else _in_auto)(program, mesh, args)


class Program(Protocol):
    """What is run in a region. Hashable, and equal to others that do the same.

    - `run(region, args)` is what it does on this device.
    - `plain(args)` is what it does without kernels, which XLA can divide; `kernels_only(args)`
      is the name of the implementation without which it is not to run, or None.
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


def _on_one_device(program, args):
    types = [jax.typeof(x).sharding for x in jax.tree.leaves(args)]
    named = [x for x in types if any(name is not None for name in x.spec)]
    if not named:
        return program.run(Region(), args)
    # Explicit axes of a mesh with this device alone. JAX lets arrays that name one take fewer
    # shapes than those that name none, though it is the same array.
    mesh = named[0].mesh
    whole = jax.tree.map(lambda x: reshard(x, mesh, PartitionSpec()), args)
    return program.restore(mesh, args, program.run(Region(), whole))


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
        axis_names=axes_of_kind(mesh, AxisType.Explicit),
        check_vma=False,
    )
    there = jax.tree.map(lambda x, spec: reshard(x, mesh, spec), args, given)
    return program.restore(mesh, args, run(there))


def reshard(x, mesh, spec):
    """An array on a mesh with Explicit axes, divided by another partition spec."""
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _in_auto(program: Program, mesh, args):
    """On a mesh with Auto axes, in four layers.

    The innermost is an operation that XLA asks, when it divides the program, what it wants to do
    with the shards it has (`_partition`). On a TPU that does not work (jax#38196), so there it is
    the plain step. Neither JAX nor XLA can map or differentiate such an operation: what is mapped
    and differentiated is the plain step as well.
    """
    operation = custom_partitioning(program.plain)
    operation.def_partition(
        partition=functools.partial(_partition, program, _without_mesh(mesh)),
        sharding_rule=program.rule(mesh.size, args),
    )

    def marked(args):
        with set_xla_metadata(optax_lamblion=mark(program, args)):
            return operation(args)

    @jax.custom_batching.custom_vmap
    def mapped(args):
        return lax.platform_dependent(args, tpu=program.plain, default=marked)

    mapped.def_vmap(functools.partial(_map_plain, program))

    @jax.custom_jvp
    def differentiated(args):
        return mapped(args)

    differentiated.defjvp(functools.partial(_differentiate_plain, program))
    return differentiated(args)


def _without_mesh(mesh):
    """The mesh in whose terms shards are what arrays are."""
    return AbstractMesh((), (), abstract_device=mesh.abstract_device)


def _partition(program, without_mesh, mesh, given, results):
    """What `custom_partitioning` asks for: what to run on shards, and how those are divided."""

    def axes(x):
        return axes_of(x.sharding.spec, len(x.shape))

    (args,) = given
    splits = program.splits(dict(mesh.shape), args, axes)
    given, results = program.specs(splits, args, lambda spec: NamedSharding(mesh, spec))

    def run(args):
        # Arguments have types without a mesh here. Without this, what is computed from them would
        # have the mesh of the program in its type, and the two would not go together.
        with jax.sharding.use_abstract_mesh(without_mesh):
            return _run_on_shards(program, mesh, splits, True, args)

    return mesh, run, results, (given,)


def _plain(program, args):
    if name := program.kernels_only(args):
        raise ValueError(
            f'`implementation="{name}"` on a mesh with Auto axes is neither mapped nor '
            "differentiated. Use `implementation=None`, with which XLA makes such a step."
        )
    return program.plain(args)


def _map_plain(program, axis_size, batched, args):
    axes = jax.tree.map(lambda x: 0 if x else None, batched)
    plain = functools.partial(_plain, program)
    out = jax.vmap(plain, in_axes=(axes[0],), axis_size=axis_size)(args)
    return out, jax.tree.map(lambda _: True, out)


def _differentiate_plain(program, args, tangents):
    return jax.jvp(functools.partial(_plain, program), args, tangents)
