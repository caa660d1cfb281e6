"""Leaves that make their step at the same time, and share the all-reduce of their norms."""

from optax_lamblion._leaf import STEPS
from pallas_kernels.step import ratio


def step(leaves, implementation, region, numbers):
    """Steps leaves that are there as a whole, as far as they are on this device.

    Args:
      leaves: `Leaf`.
      implementation: `StateOptions.implementation`.
      region: `_mesh.Region`.
      numbers: The numbers of the leaves in the region.

    Returns:
      `(out, slots, absmaxes)` for every leaf.
    """

    def call(name, leaf, *arrays):
        return STEPS[name](leaf.spec, leaf.g, leaf.p, *arrays, implementation=implementation)

    if not region.axes or not any(leaf.spec.rule.trust_ratio for leaf in leaves):
        return [tuple(call("step", x, x.slots, x.absmaxes, x.scalars, x.key)) for x in leaves]
    halves = [call("moments", x, x.slots, x.absmaxes, x.scalars, x.key) for x in leaves]
    totals = region.total(numbers, [sums for *_, sums, _ in halves])
    out = []
    for leaf, (*state, _, of_tiles), total in zip(leaves, halves, totals, strict=True):
        s = leaf.scalars
        factor = ratio(total, s)
        out.append((call("apply", leaf, *state, s, factor, of_tiles), *state))
    return out
