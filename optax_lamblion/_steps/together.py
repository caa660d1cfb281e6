"""Leaves that make their step at the same time, and share the all-reduce of their norms."""

from pallas_kernels import dispatch
from pallas_kernels.arithmetic.step import ratio
from pallas_kernels.leaf import Stepped


def step(leaves, region, numbers):
    """Steps leaves that are there as a whole, as far as they are on this device.

    Args:
      leaves: `Leaf`.
      region: `regions.Region`.
      numbers: The numbers of the leaves in the region.

    Returns:
      `Stepped` for every leaf.
    """
    if not region.axes or not any(leaf.spec.rule.ratio for leaf in leaves):
        return _count_together([dispatch.step(leaf) for leaf in leaves], region, numbers)
    halves = [dispatch.moments(leaf) for leaf in leaves]
    totals = region.total(numbers, [half.sums for half in halves])
    out = []
    for leaf, half, total in zip(leaves, halves, totals, strict=True):
        stored = leaf.replace(slots=half.slots)
        new = dispatch.apply(stored, ratio(total, leaf.scalars), half.tiles)
        out.append(Stepped(new, half.slots, half.skipped))
    return _count_together(out, region, numbers)


def _count_together(stepped, region, numbers):
    """Adds up what devices have skipped, where that is counted."""
    if not stepped or stepped[0].skipped is None:
        return stepped
    totals = region.total(numbers, [x.skipped for x in stepped])
    return [x._replace(skipped=total) for x, total in zip(stepped, totals, strict=True)]
