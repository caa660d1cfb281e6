"""What a paged optimizer does with some leaves: which pages it makes, what crosses the link.

Asked of the package's own plan: what a check is about has to happen in it, and what a step moves is
what the plan reads and writes.
"""

import math

import jax
from jax.sharding import SingleDeviceSharding

import optax_lamblion
from optax_lamblion import StateOptions
from optax_lamblion._paging.memory import HOST, KIND
from optax_lamblion._paging.pages import extent_of, make
from optax_lamblion._paging.placement import which_are_paged
from pallas_kernels.arithmetic import rules
from pallas_kernels.arithmetic.pieces import GRAIN
from pallas_kernels.leaf import StoredSlot

OPTIMIZERS = ("lion8bit", "lion32bit", "lamb8bit", "lamb32bit")


def optimizer(name, paged=True, learning_rate=2.0**-7, **options):
    """An optimizer by the name that it has without paging, with some `StateOptions`."""
    factory = getattr(optax_lamblion, "paged_" * paged + name)
    return factory(learning_rate, weight_decay=0.1, options=StateOptions(**options))


def rule_of(name):
    """The rule of an optimizer of that name."""
    return rules.LION if name.startswith("lion") else rules.LAMB


def extents(name, params):
    """The `Extent` of every leaf. `params` may be shapes."""
    rule = rule_of(name)
    state = jax.eval_shape(optimizer(name, paged=False).init, params)

    def leaves(field):
        tree = getattr(state, field)
        return jax.tree.leaves(tree) if tree is not None else [None] * len(jax.tree.leaves(params))

    columns = (map(StoredSlot, leaves(x.name), leaves(f"{x.name}_absmax")) for x in rule.slots)
    return [extent_of(rule, slots, 256) for slots in zip(*columns, strict=True)]


def pages(name, params, **options):
    """The pages of one step, each a tuple of parts of leaves."""
    return _plan(name, params, StateOptions(**options))[0]


def moved(name, params, **options):
    """`(bytes in, bytes out)` over the link in one step."""
    made, streamed = _plan(name, params, StateOptions(**options))
    parts = [(part, streamed[part.leaf]) for page in made for part in page]
    # The second part of a step in pieces, that of a trust ratio, reads, and writes no state.
    stored = [x for x in parts if x[0].phase != "apply"]
    return round(sum(_bytes(*x) for x in parts)), round(sum(_bytes(*x) for x in stored))


def _plan(name, params, options):
    found = extents(name, params)
    flags = which_are_paged(found, options)
    streamed = [x for x, is_paged in zip(found, flags, strict=True) if is_paged]
    return make(streamed, options.page_bytes, options.pages_in_flight), streamed


def _bytes(part, extent):
    if part.phase == "whole":
        return extent.nbytes
    elements = min(part.end * GRAIN, extent.size) - part.begin * GRAIN
    return extent.nbytes * elements / extent.size


def memory_kinds(tree):
    """The kind of memory of every array."""
    return jax.tree.map(lambda x: x.sharding.memory_kind, tree)


def abstract(make):
    """The shapes of what `make` returns, and their memory.

    `jax.eval_shape` has it in the type alone, which lowering does not look at.
    """

    def placed(x):
        if jax.typeof(x).memory_space != HOST:
            return x
        sharding = SingleDeviceSharding(jax.devices()[0], memory_kind=KIND)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(placed, jax.eval_shape(make))


def nbytes(tree):
    """Of all arrays, which may be shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
