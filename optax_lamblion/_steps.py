"""The steps of all leaves: of resident ones where they are, of paged ones in a stream."""

import jax

from optax_lamblion import _leaf, _pages, _stream
from optax_lamblion._placement import DEVICE, HOST


def step_leaves(leaves, paged, options):
    """Steps leaves.

    Args:
      leaves: `Leaf`, or None for what has no gradient.
      paged: Whether a leaf is.
      options: `StateOptions`.

    Returns:
      By index of the leaf, `(out, slots, absmaxes)` as from `_dispatch.step`.
    """
    results, streamed = {}, []
    for i, leaf in enumerate(leaves):
        if leaf is None:
            continue
        if paged[i]:
            streamed.append(i)
            continue
        spec, g, p, slots, absmaxes, s, key = leaf
        # A state that was paged comes to stay.
        slots, absmaxes = jax.tree.map(_to_device, (slots, absmaxes))
        results[i] = _leaf.STEPS["step"](
            spec, g, p, slots, absmaxes, s, key, implementation=options.implementation
        )
    if streamed:
        # The last leaves come first, because their gradients mostly do: so the stream can begin
        # while others are still computed.
        streamed.reverse()
        extents = [_extent(leaves[i]) for i in streamed]
        pages = _pages.make(extents, options.page_bytes, options.pages_in_flight)
        plan = _stream.Plan(
            tuple(leaves[i].spec for i in streamed),
            pages,
            options.pages_in_flight,
            options.implementation,
        )
        stepped = _stream.run(plan, [leaves[i]._replace(spec=None) for i in streamed])
        results |= dict(zip(streamed, stepped, strict=True))
    return results


def _extent(leaf):
    spec = leaf.spec
    extent = _pages.extent_of(spec.rule, leaf.slots, leaf.absmaxes, spec.block_size)
    # What is divided over devices is not cut by the flattened tensor. And of a state that does not
    # say that it is in host memory XLA cannot fetch a piece: it comes as a whole, this once.
    if jax.typeof(leaf.g).sharding.mesh.size > 1 or not all(map(_is_on_host, leaf.slots)):
        return extent._replace(can_be_cut=False)
    return extent


def _is_on_host(x):
    return jax.typeof(x).memory_space == HOST


def _to_device(x):
    return jax.device_put(x, DEVICE) if _is_on_host(x) else x
