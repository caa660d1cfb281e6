"""Paged optimizers make the steps of the resident ones, and their state stays where it sleeps.

Leaves are grouped on pages, or cut into pieces. What the plan of the step is, is asserted, too.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_lamblion import apply_fused
from optax_lamblion._paging.memory import DEVICE, KIND
from pallas_kernels.arithmetic.pieces import GRAIN
from tests.gpu import paging
from tests.gpu.check_program import plain, same
from tests.kernels.step_judge import ULP

STEPS = 3
LEAVES = {  # all paged but the bias
    "grouped": [(512, 700), (350_003,), (3, 3, 200, 200)] * 4 + [(512,)],
    "pieces": [(3000, 1024), (1_100_003,), (2, 800, 1024), (512, 700), (512,)],
}
DTYPES = ((jnp.bfloat16, jnp.bfloat16), (jnp.float32, jnp.float32), (jnp.float32, jnp.bfloat16))
"""Of parameters and gradients, leaf after leaf."""
MODES = ("apply_fused", "update")


def checks(run):
    """`(name, function)` for each claim about each optimizer."""
    cases = [(*x, None) for x in itertools.product(paging.OPTIMIZERS, LEAVES, MODES)]
    # And by XLA where the default are kernels.
    cases += [(name, "pieces", "apply_fused", "xla") for name in ("lion8bit", "lamb8bit")]
    for i, (name, kind, mode, implementation) in enumerate(cases):
        if run.tiny and i not in _TINY or run.quick and not run.tiny and i % 3:
            continue
        yield (
            f"paged is resident: {name} {mode}, {kind}" + (", xla" if implementation else ""),
            functools.partial(_same_steps, name, kind, mode, implementation),
        )
    for name in paging.OPTIMIZERS:
        if run.tiny and name not in ("lion8bit", "lamb32bit"):
            continue
        yield (
            f"results in another order than arguments, donated: {name}",
            functools.partial(_other_order, name),
        )
        for kind in LEAVES:
            if run.tiny and (kind == "pieces") == name.startswith("lion"):
                continue
            yield (
                f"a restored state is paged again: {name}, {kind}",
                functools.partial(_restored, name, kind),
            )


_TINY = (2, 5, 11, 12)  # every optimizer, both kinds of leaves, both modes


def tree(kind, seed, scale, which):
    """Parameters (`which` is 0) or gradients (1)."""
    rng = np.random.default_rng(seed)
    return {
        f"leaf{i:02}": jnp.array(scale * rng.standard_normal(shape, np.float32), dtypes[which])
        for i, (shape, dtypes) in enumerate(
            zip(LEAVES[kind], itertools.cycle(DTYPES), strict=False)
        )
    }


def options(name, kind, in_flight=2):
    """`StateOptions` as keywords, with which the leaves are grouped, or cut."""
    pairs = enumerate(zip(LEAVES[kind], itertools.cycle(DTYPES), strict=False))
    forms = {i: jax.ShapeDtypeStruct(shape, dtypes[0]) for i, (shape, dtypes) in pairs}
    largest = max(x.room for x in paging.extents(name, forms))
    made: dict[str, Any] = {
        "page_bytes": max(4 * largest if kind == "grouped" else largest // 3, 2**20),
        "pages_in_flight": in_flight,
    }
    plan = paging.pages(name, forms, **made)
    cut = {part.leaf for page in plan for part in page if part.phase != "whole"}
    if kind == "grouped":
        assert not cut and max(map(len, plan)) > 1 and len(plan) > in_flight + 1, plan
    else:
        assert len(cut) > 1 and len(plan) > in_flight + 1, plan
    return made


def steps(tx, kind, fused=True, reverse=False):
    """`(parameters after every step, state)` of some donated steps. State has to stay put."""
    params = tree(kind, 0, 1.0, 0)
    state = tx.init(params)
    kinds = paging.memory_kinds(state)

    def step(params, grads, state):
        made = (functools.partial(apply_fused, tx) if fused else plain(tx))(params, grads, state)
        return made[::-1] if reverse else made

    step = jax.jit(step, donate_argnums=(0, 2))
    seen = [params_of(params)]
    for i in range(STEPS):
        params, state = step(params, tree(kind, 1 + i, 2.0**-6, 1), state)[:: -1 if reverse else 1]
        now = paging.memory_kinds(state)
        assert now == kinds, f"the state went elsewhere in step {i + 1}: {now}, and before {kinds}"
        seen.append(params_of(params))
    return seen, state


def params_of(params):
    """Copies in NumPy, as the next step takes the arrays."""
    return {name: np.array(x) for name, x in params.items()}


def fetched(state):
    """A state on the device, where all of it can be looked at."""
    return jax.device_put(state, DEVICE)


def _same_steps(name, kind, mode, implementation):
    fused = mode == "apply_fused"
    chosen = options(name, kind, in_flight=2 if fused else 1)
    seen, state = steps(
        paging.optimizer(name, implementation=implementation, **chosen), kind, fused
    )
    assert KIND in jax.tree.leaves(paging.memory_kinds(state)), "nothing is paged"
    resident = paging.optimizer(name, paged=False, implementation=implementation)
    expected, expected_state = steps(resident, kind, fused)
    facts = compare(seen, expected, exact=not paging.rule_of(name).ratio)
    # No moment depends on a norm.
    same(fetched(state), expected_state, "state")
    return facts | chosen


def compare(seen, expected, exact):
    """What is recorded of the parameters after every step; raises if they are not those expected.

    Steps without a trust ratio have the same bits. Others may differ by what the order makes of the
    sums in their norms, which a compiler chooses for the whole leaf and for its pieces. An addend
    goes through at most `DEPTH` additions and is off by as many half ulps then, the norm by half of
    that, and the trust ratio, of two norms, by twice that; and both implementations are. So are
    the steps, and it is doubled for what the difference does to the steps after it. And a
    parameter that is rounded after each step may be rounded to the other side.
    """
    relative, bits, worst = 2 * 2 * DEPTH * ULP, 0, 0.0
    for name in seen[0]:
        bits += int((_bytes(seen[-1][name]) != _bytes(expected[-1][name])).sum())
        if exact:
            continue
        eps = float(jnp.finfo(seen[0][name].dtype).eps)
        path = [x[name].astype(np.float64) for x in expected]
        moved = np.sum([np.abs(b - a) for a, b in itertools.pairwise(path)], axis=0)
        largest = np.max(np.abs(path), axis=0) + moved
        bound = relative * moved + STEPS * eps * largest
        share = np.abs(seen[-1][name].astype(np.float64) - path[-1]) / bound
        worst = max(worst, float(share.max()))
        off = int((~(share <= 1)).sum())
        assert not off, f"{name}: {off} of {share.size} parameters off, by {share.max():.3g} bounds"
        assert moved.mean() > 0, f"{name} did not move"
    assert not (exact and bits), f"parameters differ in {bits} bytes"
    return {"bitwise": bits == 0, "bytes_that_differ": bits, "worst_of_bound": worst}


DEPTH = 512
"""A thread adds up at most 256 of the 65536 elements of a grain one after the other; then come
trees, and then the grains, of which there are fewer than 64."""
assert 256 + math.log2(GRAIN) + 64 < DEPTH


def _bytes(x):
    return np.atleast_1d(x).view(np.uint8)


def _other_order(name):
    chosen = options(name, "grouped")
    tx = paging.optimizer(name, **chosen)
    expected, expected_state = steps(tx, "grouped")
    seen, state = steps(tx, "grouped", reverse=True)
    same(seen[-1], expected[-1], "parameters")
    same(fetched(state), fetched(expected_state), "state")


def _restored(name, kind):
    chosen = options(name, kind)
    tx = paging.optimizer(name, **chosen)
    step = jax.jit(functools.partial(apply_fused, tx), donate_argnums=(0, 2))
    params, grads = tree(kind, 0, 1.0, 0), tree(kind, 1, 2.0**-6, 1)
    params, state = step(params, grads, tx.init(params))
    kinds = paging.memory_kinds(state)
    # What a checkpoint is when it has been read by something that knows of no memory but one.
    restored = jax.tree.map(lambda x: jnp.array(np.array(x)), (params, fetched(state)))
    assert KIND not in jax.tree.leaves(paging.memory_kinds(restored[1])), "it is no plain state"
    expected = step(params, grads, state)
    seen = step(restored[0], grads, restored[1])
    now = paging.memory_kinds(seen[1])
    assert now == kinds, f"after a step of a restored state: {now}, and before {kinds}"
    same(seen[0], expected[0], "parameters")
    same(fetched(seen[1]), fetched(expected[1]), "state")
