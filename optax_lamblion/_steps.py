"""The steps of all leaves: of resident ones where they are, of paged ones in a stream."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule
from jax.sharding import PartitionSpec

from optax_lamblion import _donation, _mesh, _pages, _stream, _together
from optax_lamblion._options import StateOptions
from optax_lamblion._placement import DEVICE, HOST
from optax_lamblion._splits import split_for, warn_of_cuts
from pallas_kernels.places import is_divided
from pallas_kernels.step import Spec, Stepped, coded


def step_leaves(leaves, paged, options, names):
    """Steps leaves.

    Args:
      leaves: `Leaf`, or None for what has no gradient.
      paged: Whether a leaf is.
      options: `StateOptions`.
      names: Of the leaves.

    Returns:
      `Stepped` by index of the leaf.
    """
    here = [i for i, leaf in enumerate(leaves) if leaf is not None]
    if not here:
        return {}
    # The last paged leaves come first, because their gradients mostly do: so the stream can begin
    # while others are still computed.
    here.sort(key=lambda i: (paged[i], -i if paged[i] else i))
    given = [leaves[i] for i in here]
    number = sum(paged[i] for i in here)
    resident, streamed = given[: len(given) - number], given[len(given) - number :]
    # A state that was paged comes to stay.
    resident = [
        leaf._replace(slots=_to_device(leaf.slots), absmaxes=_to_device(leaf.absmaxes))
        for leaf in resident
    ]
    whole = tuple(not all(map(_is_on_host, leaf.slots)) for leaf in streamed)
    if streamed:
        # The state may be in host memory with a type that does not say so, as after a restore, or
        # still on the device. For XLA it is then no transfer, or the one that is needed.
        streamed = [
            leaf._replace(
                slots=jax.device_put(leaf.slots, HOST), absmaxes=jax.device_put(leaf.absmaxes, HOST)
            )
            for leaf in streamed
        ]
        streamed[0] = streamed[0]._replace(slots=_donation.repair(streamed[0].slots))
    given = resident + streamed
    specs, given = tuple(x.spec for x in given), [x._replace(spec=None) for x in given]
    program = _Step(options, specs, tuple(names[i] for i in here), whole)
    slots = [leaf.slots[0] for leaf in given]
    if any(spec.rule.trust_ratio or spec.count_skipped for spec in specs):
        _mesh.check_norm_axes(slots, options.norm_axes)
    stepped = _mesh.on_shards(program, given, slots, options.norm_axes)
    return dict(zip(here, stepped, strict=True))


class _Step(NamedTuple):
    """The step of resident leaves and, after them, of as many paged ones as `whole` is long.

    A `_mesh.Program` whose arguments are `Leaf` without their `spec`. If a state is divided more
    than gradient and parameter are, the step is made where the state is.
    """

    options: StateOptions
    of_leaves: tuple[Spec, ...]
    names: tuple[str, ...]
    whole: tuple[bool, ...]
    """Whether a paged leaf is not to be cut: of a state that does not say that it is in host memory
    XLA cannot fetch a piece. It comes as a whole, this once."""

    def run(self, region, leaves):
        """`Stepped` for every leaf."""
        leaves = [
            leaf._replace(spec=spec if leaf.spec is None else leaf.spec)
            for leaf, spec in zip(leaves, self.of_leaves, strict=True)
        ]
        options, number = self.options, len(leaves) - len(self.whole)
        streamed = leaves[number:]
        stepped = _together.step(leaves[:number], options.implementation, region, range(number))
        if not streamed:
            return stepped
        extents = [_extent(leaf, whole) for leaf, whole in zip(streamed, self.whole, strict=True)]
        plan = _stream.Plan(
            tuple(leaf.spec for leaf in streamed),
            _pages.make(extents, options.page_bytes, options.pages_in_flight),
            options.pages_in_flight,
            options.implementation,
        )
        region = region.of(range(number, len(leaves)))
        return stepped + _stream.run(plan, region, [leaf._replace(spec=None) for leaf in streamed])

    def plain(self, leaves):
        """The same without kernels, where there are no shards."""
        by_xla = dataclasses.replace(self.options, implementation="xla")
        return self._replace(options=by_xla).run(_mesh.Region(), leaves)

    @property
    def kernels_only(self):
        """Whether kernels are asked for by name."""
        return self.options.implementation == "mosaic"

    def splits(self, sizes, leaves, axes):
        """The `Split` of every leaf."""
        blocks = [
            spec.block_size if coded(leaf.slots[0]) else None
            for spec, leaf in zip(self.of_leaves, leaves, strict=True)
        ]

        def split(leaf, block):
            arrays = [x for x in (leaf.slots[0], leaf.g, leaf.p) if x is not None]
            return split_for(leaf.g.shape, [axes(x) for x in arrays], sizes, block)

        splits = [split(leaf, block) for leaf, block in zip(leaves, blocks, strict=True)]
        warn_of_cuts(list(zip(self.names, splits, blocks, strict=True)))
        return splits

    def local(self, region, splits, leaves):
        """Leaves that know of their place."""

        def local(spec, split, place, leaf):
            spec = spec._replace(late=region.late)
            if spec.block_size is None and coded(leaf.slots[0]):
                spec = spec._replace(absmax_axes=tuple(sorted(split.names)))
            return leaf._replace(spec=spec, dither=leaf.dither._replace(place=place))

        return [
            local(*row) for row in zip(self.of_leaves, splits, region.places, leaves, strict=True)
        ]

    def specs(self, splits, leaves, wrap):
        """Partition specs of leaves and of results."""
        pairs = [
            _like(
                leaf,
                spec.count_skipped,
                wrap(split.spec),
                wrap(split.scales_spec(_scales_shape(leaf))),
                wrap(split.layers_spec),
                wrap(PartitionSpec()),
            )
            for spec, split, leaf in zip(self.of_leaves, splits, leaves, strict=True)
        ]
        return [given for given, _ in pairs], [results for _, results in pairs]

    def rule(self, devices, leaves):
        """Which axes belong together: those of one leaf."""
        operands, results, sizes = [], [], {}
        for i, (spec, leaf) in enumerate(zip(self.of_leaves, leaves, strict=True)):
            block = spec.block_size if coded(leaf.slots[0]) else None
            of_leaf, of_scales, own = _mesh.factors(f"leaf{i}_", leaf.g.shape, block, devices)
            of_layers = ArrayMapping(of_leaf[0]) if leaf.g.ndim else ArrayMapping()
            pair = _like(leaf, spec.count_skipped, of_leaf, of_scales, of_layers, ArrayMapping())
            for mappings, tree in zip((operands, results), pair, strict=True):
                mappings += jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, ArrayMapping))
            sizes |= own
        return SdyShardingRule(tuple(operands), tuple(results), **sizes)

    def restore(self, mesh, leaves, results):
        """Results, divided as parameter (or gradient) and state are."""

        def restore(leaf, stepped):
            like = Stepped(leaf.g if leaf.p is None else leaf.p, leaf.slots, leaf.absmaxes)
            return jax.tree.map(
                lambda x, like: _mesh.reshard(x, mesh, jax.typeof(like).sharding.spec),
                stepped,
                like._replace(skipped=stepped.skipped),
            )

        return [restore(leaf, stepped) for leaf, stepped in zip(leaves, results, strict=True)]


def _scales_shape(leaf):
    return next((a.shape for a in leaf.absmaxes if a is not None), ())


def _like(leaf, count, of_leaf: Any, of_scales, of_layers, of_number):
    """Trees like a leaf and like its results, of what stands for arrays of every kind."""
    slots = (of_leaf,) * len(leaf.slots)
    absmaxes = tuple(None if a is None else of_scales for a in leaf.absmaxes)
    given = leaf._replace(
        g=of_leaf,
        p=None if leaf.p is None else of_leaf,
        slots=slots,
        absmaxes=absmaxes,
        scalars=jax.tree.map(lambda x: of_layers if jnp.ndim(x) else of_number, leaf.scalars),
        dither=jax.tree.map(lambda _: of_number, leaf.dither),
    )
    return given, Stepped(of_leaf, slots, absmaxes, of_number if count else None)


def _extent(leaf, whole):
    spec = leaf.spec
    extent = _pages.extent_of(
        spec.rule, leaf.slots, leaf.absmaxes, spec.block_size, stacked=spec.stacked
    )
    return extent._replace(can_be_cut=False) if whole or is_divided(leaf.g) else extent


def _is_on_host(x):
    return jax.typeof(x).memory_space == HOST


def _to_device(state):
    return jax.tree.map(lambda x: jax.device_put(x, DEVICE) if _is_on_host(x) else x, state)
