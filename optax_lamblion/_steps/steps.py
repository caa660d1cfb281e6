"""The steps of all leaves: of resident ones where they are, of paged ones in a stream."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule
from jax.sharding import PartitionSpec

from optax_lamblion._mesh import regions, shardy, ways_in
from optax_lamblion._mesh.splits import split_for, warn_of_cuts
from optax_lamblion._paging import donation, pages
from optax_lamblion._paging.memory import DEVICE, HOST
from optax_lamblion._steps import stream, together
from pallas_kernels import dispatch
from pallas_kernels.arithmetic.shards import is_divided
from pallas_kernels.leaf import Stepped, StoredSlot


def step_leaves(resident, paged, names, options):
    """Steps leaves.

    Args:
      resident: `Leaf`s by what the caller knows them by.
      paged: More of them, whose state is to be in host memory.
      names: What leaves are called, by the same.
      options: `StateOptions`.

    Returns:
      `Stepped` by the same.
    """
    # The last paged leaves come first, because their gradients mostly do: so the stream can begin
    # while others are still computed.
    keys = [*resident, *reversed(paged)]
    if not keys:
        return {}
    # What lies in host memory, as after a restore from a paged optimizer, moves to the device.
    leaves = [_moved(leaf, _to_device) for leaf in resident.values()]
    streamed = [paged[key] for key in reversed(paged)]
    whole = tuple(not all(_is_on_host(slot.values) for slot in leaf.slots) for leaf in streamed)
    if streamed:
        # The state may be in host memory with a type that does not say so, as after a restore, or
        # still on the device. For XLA it is then no transfer, or the one that is needed.
        streamed = [_moved(leaf, lambda state: jax.device_put(state, HOST)) for leaf in streamed]
        streamed[0] = streamed[0].replace(slots=donation.repair(streamed[0].slots))
    leaves += streamed
    program = _Step(
        tuple(names[key] for key in keys), whole, options.page_bytes, options.pages_in_flight
    )
    values = [leaf.slots[0].values for leaf in leaves]
    if any(leaf.spec.rule.ratio or leaf.spec.count_skipped for leaf in leaves):
        regions.check_norm_axes(values, options.norm_axes)
    stepped = ways_in.on_shards(program, leaves, values, options.norm_axes)
    return dict(zip(keys, stepped, strict=True))


class _Step(NamedTuple):
    """The step of resident leaves and, after them, of as many paged ones as `whole` is long.

    A `ways_in.Program` whose arguments are `Leaf`s. If a state is divided more than gradient and
    parameter are, the step is made where the state is.
    """

    names: tuple[str, ...]
    whole: tuple[bool, ...]
    """Whether a paged leaf is not to be cut: of a state that does not say that it is in host memory
    XLA cannot fetch a piece. It comes as a whole, this once."""
    page_bytes: int
    pages_in_flight: int

    def run(self, region, leaves):
        """`Stepped` for every leaf."""
        number = len(leaves) - len(self.whole)
        streamed = leaves[number:]
        stepped = together.step(leaves[:number], region, range(number))
        if not streamed:
            return stepped
        extents = [_extent(leaf, whole) for leaf, whole in zip(streamed, self.whole, strict=True)]
        made = pages.make(extents, self.page_bytes, self.pages_in_flight)
        region = region.of(range(number, len(leaves)))
        return stepped + stream.run(stream.Plan(made, self.pages_in_flight), region, streamed)

    def plain(self, leaves):
        """The same without kernels, where there are no shards."""
        return self.run(regions.Region(), [leaf.respec(implementation="xla") for leaf in leaves])

    def kernels_only(self, leaves):
        """The implementation with kernels that is asked for by name, or None."""
        named = (leaf.spec.implementation for leaf in leaves)
        return next((name for name in named if name not in (None, dispatch.GENERAL)), None)

    def splits(self, sizes, leaves, axes):
        """The `Split` of every leaf."""

        def split(leaf):
            arrays = [x for x in (leaf.slots[0].values, leaf.g, leaf.p) if x is not None]
            return split_for(leaf.g.shape, [axes(x) for x in arrays], sizes, _block_size(leaf))

        splits = [split(leaf) for leaf in leaves]
        blocks = map(_block_size, leaves)
        warn_of_cuts(list(zip(self.names, splits, blocks, strict=True)))
        return splits

    def local(self, region, splits, leaves):
        """Leaves that know of their place."""

        def local(split, place, leaf):
            cut = leaf.coded and leaf.spec.block_size is None
            axes = tuple(sorted(split.names)) if cut else leaf.spec.absmax_axes
            leaf = leaf.replace(dither=leaf.dither._replace(place=place))
            return leaf.respec(late=region.late, absmax_axes=axes)

        return [local(*row) for row in zip(splits, region.places, leaves, strict=True)]

    def specs(self, splits, leaves, wrap):
        """Partition specs of leaves and of results."""
        pairs = [
            _like(
                leaf,
                wrap(split.spec),
                wrap(split.scales_spec(_scales_shape(leaf))),
                wrap(split.layers_spec),
                wrap(PartitionSpec()),
            )
            for split, leaf in zip(splits, leaves, strict=True)
        ]
        return [given for given, _ in pairs], [results for _, results in pairs]

    def rule(self, devices, leaves):
        """Which axes belong together: those of one leaf."""
        operands, results, sizes = [], [], {}
        for i, leaf in enumerate(leaves):
            block, prefix = _block_size(leaf), f"leaf{i}_"
            of_leaf, of_scales, own = shardy.factors(prefix, leaf.g.shape, block, devices)
            of_layers = ArrayMapping(of_leaf[0]) if leaf.g.ndim else ArrayMapping()
            pair = _like(leaf, of_leaf, of_scales, of_layers, ArrayMapping())
            for mappings, tree in zip((operands, results), pair, strict=True):
                mappings += jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, ArrayMapping))
            sizes |= own
        return SdyShardingRule(tuple(operands), tuple(results), **sizes)

    def restore(self, mesh, leaves, results):
        """Results, divided as parameter (or gradient) and state are."""

        def restore(leaf, stepped):
            like = Stepped(leaf.g if leaf.p is None else leaf.p, leaf.slots, residual=leaf.residual)
            return jax.tree.map(
                lambda x, like: ways_in.reshard(x, mesh, jax.typeof(like).sharding.spec),
                stepped,
                like._replace(skipped=stepped.skipped),
            )

        return [restore(leaf, stepped) for leaf, stepped in zip(leaves, results, strict=True)]


def _block_size(leaf):
    """Elements that share a scale; None where nothing says so."""
    return leaf.spec.block_size if leaf.coded else None


def _scales_shape(leaf):
    return leaf.slots[0].absmax.shape if leaf.coded else ()


def _like(leaf, of_leaf: Any, of_scales, of_layers, of_number):
    """Trees like a leaf and like its results, of what stands for arrays of every kind."""
    slots = tuple(StoredSlot(of_leaf, of_scales if x.coded else None) for x in leaf.slots)
    given = leaf.replace(
        g=of_leaf,
        p=None if leaf.p is None else of_leaf,
        slots=slots,
        scalars=jax.tree.map(lambda x: of_layers if jnp.ndim(x) else of_number, leaf.scalars),
        dither=jax.tree.map(lambda _: of_number, leaf.dither),
        residual=None if leaf.residual is None else of_leaf,
    )
    skipped = of_number if leaf.spec.count_skipped else None
    return given, Stepped(of_leaf, slots, skipped, given.residual)


def _extent(leaf, whole):
    spec = leaf.spec
    extent = pages.extent_of(
        spec.rule, leaf.slots, spec.block_size, residual=leaf.residual, stacked=spec.stacked
    )
    return extent._replace(can_be_cut=False) if whole or is_divided(leaf.g) else extent


def _is_on_host(x):
    return jax.typeof(x).memory_space == HOST


def _moved(leaf, move):
    slots, residual = move((leaf.slots, leaf.residual))
    return leaf.replace(slots=slots, residual=residual)


def _to_device(state):
    return jax.tree.map(lambda x: jax.device_put(x, DEVICE) if _is_on_host(x) else x, state)
