"""Leaves that make their step at the same time, and share the all-reduce of their norms."""

from optax_lamblion._leaf import STEPS
from pallas_kernels.step import Stepped, ratio


def step(leaves, implementation, region, numbers):
    """Steps leaves that are there as a whole, as far as they are on this device.

    Args:
      leaves: `Leaf`.
      implementation: `StateOptions.implementation`.
      region: `_mesh.Region`.
      numbers: The numbers of the leaves in the region.

    Returns:
      `Stepped` for every leaf.
    """

    def call(name, leaf, *arrays):
        return STEPS[name](leaf.spec, leaf.g, leaf.p, *arrays, implementation=implementation)

    if not region.axes or not any(leaf.spec.rule.trust_ratio for leaf in leaves):
        stepped = [call("step", x, x.slots, x.absmaxes, x.scalars, x.dither) for x in leaves]
        return _count_together(stepped, region, numbers)
    halves = [call("moments", x, x.slots, x.absmaxes, x.scalars, x.dither) for x in leaves]
    totals = region.total(numbers, [sums for *_, sums, _, _ in halves])
    out = []
    for leaf, (*state, _, of_tiles, skipped), total in zip(leaves, halves, totals, strict=True):
        s = leaf.scalars
        factor = ratio(total, s)
        new = call("apply", leaf, *state, s, factor, of_tiles)
        out.append(Stepped(new, *state, skipped=skipped))
    return _count_together(out, region, numbers)


def _count_together(stepped, region, numbers):
    """Adds up what devices have skipped, where that is counted."""
    if not stepped or stepped[0].skipped is None:
        return stepped
    totals = region.total(numbers, [x.skipped for x in stepped])
    return [x._replace(skipped=total) for x, total in zip(stepped, totals, strict=True)]
