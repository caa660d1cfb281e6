"""Donated arrays of two kinds of memory are paired with results of their own kind.

Without the repair in `_donation`, most of these end the process, so they run in one of their own.
"""

import itertools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from optax_lamblion import apply_fused, paged_lion32bit

ORDERS = tuple(itertools.permutations(("params", "state", "other")))
DONATED = ((), (0,), (1,), (0, 1), (0, 1, 2), (1, 2))


def make(order, donate):
    """A jitted step in float32, where a momentum has the shape and dtype of its parameter.

    `other` is a third tree like the parameters, on the device: an average of them.
    """
    tx = paged_lion32bit(1e-2, weight_decay=0.1)

    def step(params, state, other, grads):
        params, state = apply_fused(tx, params, grads, state)
        other = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, other, params)
        results = {"params": params, "state": state, "other": other}
        return tuple(results[name] for name in order)

    return tx, jax.jit(step, donate_argnums=donate)


def arrays(tx):
    p = {"a": jnp.ones((512, 512)), "b": jnp.ones((512, 512))}
    return p, tx.init(p), jax.tree.map(lambda x: 2 * x, p), jax.tree.map(lambda x: 3 * x, p)


def run_all():
    """Prints a line of JSON for every combination that has run."""
    expected = None
    for order, donate in itertools.product(ORDERS, DONATED):
        tx, step = make(order, donate)
        *given, g = arrays(tx)
        for _ in range(2):
            results = dict(zip(order, step(*given, g), strict=True))
            given = [results[name] for name in ("params", "state", "other")]
        numbers = [float(x.sum()) for x in jax.tree.leaves(given)]
        kinds = [x.sharding.memory_kind for x in jax.tree.leaves(given)]
        expected = expected or (numbers, kinds)
        print(json.dumps([order, donate, (numbers, kinds) == expected]), flush=True)
    print(json.dumps(expected[1]), flush=True)


@pytest.fixture(scope="module")
def lines():
    code = "from tests.optimizers import test_donation_across_memories as t; t.run_all()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout[-300:], done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_order_of_results_and_no_donation_ends_the_process(lines):
    *runs, kinds = lines
    assert len(runs) == len(ORDERS) * len(DONATED)
    assert all(same for *_, same in runs), [run for run in runs if not run[-1]]
    assert kinds == ["device"] * 2 + ["device", *["pinned_host"] * 2] + ["device"] * 2


@pytest.mark.parametrize("donate", DONATED, ids=str)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_every_donated_array_that_has_a_partner_gets_it(order, donate):
    tx, step = make(order, donate)
    text = step.lower(*arrays(tx)).as_text()
    signature = text[text.index("func.func public @main") :]
    signature = signature[: signature.index("{\n")]
    arguments, results = signature.split(") -> (")
    kinds = re.findall(r'mhlo.memory_kind = "(\w+)"', results)
    assert len(kinds) == 7
    pairs = {}
    for argument in re.split(r"%arg\d+: ", arguments)[1:]:
        if alias := re.search(r"tf.aliasing_output = (\d+)", argument):
            on_host = 'memory_kind = "pinned_host"' in argument
            assert kinds[int(alias[1])] == ("pinned_host" if on_host else "device")
            assert pairs.setdefault(int(alias[1]), argument) is argument
    donated = sum({0: 2, 1: 3, 2: 2}[i] for i in donate)
    assert len(pairs) == donated
