"""Leaves that make their step at the same time, and share what they can.

They share the all-reduce of their norms, and on a GPU, where every kernel takes time to launch, the
kernels of small leaves (`batches`) and those that make trust ratios of sums.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import platform_dependent

from optax_lamblion._steps import batches
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
    one_by_one = functools.partial(_one_by_one, leaves, region, numbers)
    if len(leaves) > 1 and (platforms := dispatch.compiles_for()):
        # Without arguments: what is one value for many leaves would be one for each.
        on_gpu = functools.partial(_in_few_kernels, leaves, region, numbers)
        stepped = platform_dependent(default=one_by_one, **dict.fromkeys(platforms, on_gpu))
    else:
        stepped = one_by_one()
    if not stepped or stepped[0].skipped is None:
        return stepped
    totals = region.total(numbers, [x.skipped for x in stepped])
    return [x._replace(skipped=total) for x, total in zip(stepped, totals, strict=True)]


def _one_by_one(leaves, region, numbers):
    if not region.axes or not any(leaf.spec.rule.ratio for leaf in leaves):
        return [dispatch.step(leaf) for leaf in leaves]
    halves = [dispatch.moments(leaf) for leaf in leaves]
    totals = region.total(numbers, [_sum_of_parts(half.sums) for half in halves])
    ratios = [ratio(x, leaf.scalars) for x, leaf in zip(totals, leaves, strict=True)]
    return list(map(_applied, leaves, halves, ratios))


def _applied(leaf, half, ratio):
    out = dispatch.apply(leaf.replace(slots=half.slots), ratio, half.tiles)
    return Stepped(out.out, half.slots, half.skipped, out.residual)


def _in_few_kernels(leaves, region, numbers):
    made = batches.make({i: x for i, x in enumerate(leaves) if batches.can_be_in_one(x)})
    small = {i: leaf for batch in made for i, leaf in batch.leaves().items()}
    leaves = [small[i] if i in small else leaf for i, leaf in enumerate(leaves)]
    halves = {
        i: dispatch.moments(leaf)
        for i, leaf in enumerate(leaves)
        if leaf.spec.rule.ratio and i not in small and (region.axes or dispatch.has_kernel(leaf))
    }
    sums = _sums(halves) | {i: x for batch in made for i, x in _sums_of_batch(batch).items()}
    totals = region.total([numbers[i] for i in sums], list(sums.values())) if sums else []
    ratios = _ratios(leaves, dict(zip(sums, totals, strict=True)))

    def stepped(i, leaf):
        if i in halves:
            return _applied(leaf, halves[i], ratios[i])
        return dispatch.step(_with_ratio(leaf, ratios[i]) if i in ratios else leaf)

    return [stepped(i, leaf) for i, leaf in enumerate(leaves)]


def _with_ratio(leaf, ratio):
    """A leaf that makes the step of a trust ratio without asking for norms."""
    s, rule = leaf.scalars, leaf.spec.rule
    leaf = leaf.replace(scalars=s._replace(step_size=s.step_size * ratio))
    return leaf.respec(rule=rule._replace(ratio=False))


# ------------------------------------------------------------------------- sums and their ratios


def _sum_of_parts(sums):
    return sums[0] if len(sums) == 1 else jnp.sum(sums, axis=0)


def _sums_of_batch(batch):
    """The sums of every leaf of a batch, by its number; none of a rule that needs none."""
    if not batch.rule.ratio:
        return {}
    sums = batch.map(lambda leaf: _sum_of_parts(dispatch.moments(leaf).sums))
    return dict(zip(batch.numbers, sums, strict=True))


def _sums(halves):
    """The sums of leaves from those of their parts, in three kernels for all that have many."""
    sums = {i: half.sums for i, half in halves.items()}
    many = [i for i, x in sums.items() if len(x) > 1]
    if many:
        sums |= dict(zip(many, _sums_of_parts([sums[i] for i in many]), strict=True))
    return {i: x if i in many else _sum_of_parts(x) for i, x in sums.items()}


def _sums_of_parts(sums):
    """A row for every leaf."""
    chunks = [-(-len(x) // _CHUNK) for x in sums]
    padded = [jnp.pad(x, ((0, -len(x) % _CHUNK), (0, 0))) for x in sums]
    of_chunks = jnp.sum(jnp.concatenate(padded).reshape(-1, _CHUNK, 2), axis=1)
    # By themselves, or XLA would add up the parts anew for every leaf.
    of_chunks = lax.optimization_barrier(of_chunks)
    leaf = np.repeat(np.arange(len(sums)), chunks)
    own = leaf == np.arange(len(sums))[:, None]
    return jnp.sum(jnp.where(own[..., None], of_chunks, 0), axis=1)


_CHUNK = 128
"""Parts that are added up before it matters which leaf they are of."""


def _ratios(leaves, totals):
    """The trust ratio of every leaf, or of every layer of a stack, by number."""
    ratios = {i: ratio(x, leaves[i].scalars) for i, x in totals.items() if x.ndim > 1}
    if whole := [i for i in totals if i not in ratios]:
        # What limits a ratio is the same for all.
        of_all = ratio(jnp.stack([totals[i] for i in whole]), leaves[whole[0]].scalars)
        ratios |= dict(zip(whole, of_all, strict=True))
    return ratios
