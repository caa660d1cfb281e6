"""Leaves that are stepped in shards, and stacks of layers: what has to be that of other leaves.

A shard of whole tiles has the bits of the leaf. Where a shard has a rest, what is inside of a tile
of the leaf is computed by XLA there, and at a tie the two may choose different neighbours.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.arithmetic.shards import Place
from pallas_kernels.arithmetic.step import ratio
from tests import oracles
from tests.emulated import cases, programs
from tests.gpu import comparing
from tests.gpu.check_step import Case
from tests.kernels.codec_judge import level_error
from tests.kernels.step_judge import OPERATIONS, ULP, float64
from tests.steps import Seen, arrays_of, leaf_of

ROWS = {"whole tiles": (64, 512, 2), "with a rest": (128, 144, 4)}
"""Rows and columns of a leaf, and how many shards its rows are divided among. The rest are the last
two blocks of a shard, whether tiles are of 4096, 2048 or 1024 elements."""


def _in_shards(rule, rows, columns, count, exact):
    """The leaf, made of its shards, is judged as if a kernel had stepped it at once."""
    case = Case(rule, "params", (rows, columns), "float32", "float32", fresh=not exact)
    given = comparing.inputs(case) if exact else _beside_turns(case, comparing.inputs(case), count)
    whole, general = (made(*given) for made in programs.steps(comparing.spec(case)))
    apart = _apart(leaf_of(comparing.spec(case), *given), count)
    seen = comparing.judge(case, given, apart, general)
    comparing.judge(case, given, whole, general)
    differ = 0
    for slot, x, y in zip(rule.slots, apart.slots, whole.slots, strict=True):
        places = (oracles.ranks(np.asarray(codes), case.codec, slot.signed) for codes in (x, y))
        between = np.abs(np.subtract(*places))
        assert between.max() <= (0 if exact else 1)
        differ += int(between.sum())
    return seen | {"differ_from_the_leaf": differ}


OFF = 1e-5
"""Of a gap: how far values are from where rounding turns, at most."""


def _beside_turns(case, given, count):
    """Gradients, of fresh moments, of which eight in each block of a rest are beside turns."""
    g, *others = given
    rng, flat = np.random.default_rng(1), np.array(g).reshape(-1, case.block)
    largest = np.abs(flat).max(axis=1, keepdims=True)
    decay = case.rule.decays(case.scalars.own)[0]
    u = oracles.dither(comparing.STEP, comparing.LEAF, 0, (len(flat),), 1, decay)
    levels = np.sort(oracles.levels(case.codec, True))
    levels = levels[levels >= 0]
    of_shard = len(flat) // count
    rest = np.arange(len(flat)) % of_shard >= of_shard - 2
    at = np.argsort(np.abs(flat[rest]), axis=1)[:, :8]  # none of them the largest
    rung = rng.integers(40, 120, at.shape)
    share = u[rest, None] + rng.uniform(-OFF, OFF, at.shape)
    value = (levels[rung] + share * (levels[rung + 1] - levels[rung])) * largest[rest]
    changed = flat[rest]
    np.put_along_axis(changed, at, value.astype(np.float32), axis=1)
    flat[rest] = changed
    return jnp.asarray(flat.reshape(g.shape)), *others


def _apart(leaf, count):
    """What the step makes of a leaf of which `count` devices have some rows each."""
    rows = leaf.g.shape[0] // count
    shards = [_shard(leaf, i * rows, rows) for i in range(count)]
    if not leaf.spec.rule.ratio:
        made = [programs.whole()(x) for x in shards]
        outs = [x.out for x in made]
    else:
        moments, apply = programs.halves()
        made = [moments(x) for x in shards]
        factor = ratio(sum(jnp.sum(x.sums, axis=0) for x in made), leaf.scalars)
        outs = [
            apply(x.replace(slots=half.slots), factor, half.tiles).out
            for x, half in zip(shards, made, strict=True)
        ]
    slots = zip(*(arrays_of(x.slots) for x in made), strict=True)
    join = lambda *parts: np.concatenate(parts)  # noqa: E731
    values, scales = (jax.tree.map(join, *parts) for parts in slots)
    return Seen(np.concatenate(outs), values, scales)


def _shard(leaf, first, rows):
    """Some rows of a leaf, as a leaf of its own."""
    part = lambda x: x[first * len(x) // len(leaf.g) :][: rows * len(x) // len(leaf.g)]  # noqa: E731
    g, p, slots = jax.tree.map(part, (leaf.g, leaf.p, leaf.slots))
    place = Place(leaf.g.shape, g.shape, (jnp.uint32(first), None))
    return leaf.replace(g=g, p=p, slots=slots, dither=leaf.dither._replace(place=place))


LAYERS = 3


def _stacked(rule, emit):
    """Moments are those of a leaf that is no stack, and every layer has a norm of its own."""
    case = Case(rule, emit, (LAYERS, 16, 512), "float32", "bfloat16", count_skipped=True)
    g, p, slots, absmaxes, s, dither = comparing.inputs(case)
    sizes = jnp.array([1, 8, 64], jnp.float32)  # of layers, so that their norms differ
    scaled = s._replace(grad_scale=sizes)
    p = p * sizes.reshape(-1, 1, 1)
    spec = comparing.spec(case)
    stack, _ = programs.steps(spec._replace(stacked=True))
    leaf, _ = programs.steps(spec)
    made = stack(g, p, slots, absmaxes, scaled, dither)
    g = (g.astype(jnp.float32) * sizes.reshape(-1, 1, 1)).astype(g.dtype)  # powers of two: exact
    plain = leaf(g, p, slots, absmaxes, s, dither)
    jax.tree.map(np.testing.assert_array_equal, made[1:], plain[1:])
    worst = max(_layer_error(case, s, made, i, p, g) for i in range(LAYERS))
    assert worst <= 1, f"off by up to {worst} times the bound"
    return {"worst": worst}


def _layer_error(case, s, made, layer, p, g):
    """How far the result of a layer is from its step in float64, as a share of the bound."""
    m, v = (
        oracles.decode(np.asarray(x), np.asarray(a), case.block, case.codec, slot.signed)[layer]
        for x, a, slot in zip(made.slots, made.absmaxes, case.rule.slots, strict=True)
    )
    own = jax.tree.map(float, s.own)
    p, out = float64(p)[layer], float64(made.out)[layer]
    step = oracles.lamb_update(
        m * own.debias1, v * own.debias2, p, np.isnan(float64(g)[layer]),
        learning_rate=-float(s.step_size), eps=own.eps, weight_decay=float(s.weight_decay),
    )  # fmt: skip
    expected = step.update + (p if case.emit == "params" else 0)
    relative = 2 * OPERATIONS * ULP + level_error(case.codec, True) + level_error(case.codec, False)
    norms = 4 * ULP * (2 + math.log2(p.size)) + comparing.DIVISION
    size = abs(float(s.step_size)) * step.ratio
    bound = size * (relative * step.magnitude + 2 * (norms + relative) * np.abs(step.direction))
    bound += 2 * ULP * (np.abs(p) + np.abs(expected))
    return float(np.max(np.abs(out - expected) / bound))


CHECKS = {
    f"shards {name}/{rule}": functools.partial(_in_shards, made, *rows, exact=name == "whole tiles")
    for name, rows in ROWS.items()
    for rule, made in cases.RULES.items()
    if rule != "lamb_amsgrad"
} | {
    f"stack/lamb/{emit}": functools.partial(_stacked, cases.RULES["lamb"], emit)
    for emit in ("params", "updates")
}
