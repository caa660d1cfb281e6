"""Parameters of 16 bits are rounded on eight devices as they are on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused, full_precision, state_sharding
from tests.meshes import problem, test_ways_in
from tests.meshes.problem import P

ROUNDINGS = "stochastic", "compensated"
BFLOAT16 = jnp.bfloat16


def make(name, rounding, **options):
    options = StateOptions(param_rounding=rounding, page_min_size=1000, **options)
    return getattr(optax_lamblion, name)(1e-3, weight_decay=0.1, options=options)


@functools.cache
def alone(name, rounding, steps):
    return problem.Run(make(name, rounding), dtype=BFLOAT16, steps=steps)


def rows():
    ways = [
        ("lion8bit", "compensated", "4x2", "auto", None),
        ("paged_lion8bit", "compensated", "1x8", "explicit", None),
        ("lion8bit", "stochastic", "4x2", "explicit", None),
        ("lion32bit", "stochastic", "2x2x2", "auto", "data"),
        ("lion32bit", "compensated", "2x2x2", "auto", None),
        ("lion32bit", "compensated", "2x2x2", "explicit", "data"),
    ]
    for name in ("adamw8bit", "adamw32bit", "paged_adamw8bit"):
        for rounding in ROUNDINGS:
            ways += [(name, rounding, "4x2", "auto", None)]
            ways += [(name, rounding, "2x2x2", "explicit", "data")]
    return [pytest.param(*way, id="-".join(map(str, way))) for way in ways]


@pytest.mark.parametrize(("name", "rounding", "shape", "kind", "over"), rows())
def test_the_same_bits_as_on_one_device(name, rounding, shape, kind, over):
    """Random numbers and dithers are those of elements and blocks in the whole tensor."""
    one = alone(name, rounding, 3)
    mesh = problem.make_mesh(shape, kind)
    run = problem.Run(make(name, rounding), mesh, dtype=BFLOAT16, over=over)
    assert problem.differing((one.params, one.state), (run.params, run.state)) == []
    if rounding == "compensated":
        p = problem.put(problem.params(BFLOAT16), mesh)
        places = state_sharding(make(name, rounding), p, over=over)
        for leaf, x in run.state.residual.items():
            expected = places.mu[leaf]
            assert x.sharding.is_equivalent_to(expected, x.ndim), leaf
            assert x.sharding.memory_kind == expected.memory_kind, leaf
    # Residuals and parameters go nowhere that they did not go before.
    assert set(run.collectives) <= ({"all-gather"} if over else set())


@pytest.mark.parametrize("kind", problem.KINDS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ["lamb8bit", "lamb32bit"])
def test_the_same_but_for_the_order_of_norms(name, rounding, kind):
    """Which moves a ratio by its last digits: the nearest number of 24 bits, or one beside it."""
    one = alone(name, rounding, 1)
    run = problem.Run(make(name, rounding), problem.make_mesh("4x2", kind), dtype=BFLOAT16, steps=1)
    assert set(problem.differing(one.state.mu, run.state.mu)) == set()
    apart = 2.0**-15 if rounding == "compensated" else 2.0**-7
    for leaf, start in problem.params(BFLOAT16).items():
        pair = (one.params, one.state), (run.params, run.state)
        x, y = (np.float64(in_full(leaf, *of)) for of in pair)
        step = 2.0**-20 * np.abs(x - np.float64(start))  # as far as the steps are apart
        assert (np.abs(x - y) <= apart * np.maximum(np.abs(x), np.abs(y)) + step).all()
        assert np.mean(x != y) < 0.01


@pytest.mark.parametrize("kind", problem.KINDS)
def test_parameters_in_full_stay_where_they_are(kind):
    mesh = problem.make_mesh("4x2", kind)
    run = problem.Run(make("lion32bit", "compensated"), mesh, dtype=BFLOAT16, steps=1)
    one = alone("lion32bit", "compensated", 1)
    out = full_precision(run.params, run.state)
    copies = [np.asarray(shard.data) for shard in out["everywhere"].addressable_shards]
    assert len(copies) == 8 and all((x == copies[0]).all() for x in copies)
    assert problem.differing(full_precision(one.params, one.state), out) == []
    for leaf, sharding in problem.shardings(mesh).items():
        assert out[leaf].sharding.is_equivalent_to(sharding, out[leaf].ndim)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_shards_in_shard_map_are_rounded_as_well(rounding, monkeypatch):
    """`jax.shard_map` does not say where a shard lies: its elements are counted from its own."""
    tree = problem.params(), problem.gradients(1)[0]
    p, g = jax.tree.map(lambda x: x.astype(BFLOAT16), tree)
    monkeypatch.setattr(problem, "params", lambda: p)
    monkeypatch.setattr(test_ways_in, "G", g)
    tx = make("lion32bit", rounding)
    one = apply_fused(tx, p, g, tx.init(p))
    many = test_ways_in.mapped(tx, problem.make_mesh(), check_vma=True)
    # Either of the two numbers next to the same one; of those with a residual, of 24 bits.
    apart = 2.0**-15 if rounding == "compensated" else 2.0**-7
    for leaf in p:
        x, y = (np.float64(in_full(leaf, *run)) for run in (one, many))
        assert (np.abs(x - y) <= apart * np.maximum(np.abs(x), np.abs(y))).all()
        if problem.SPECS[leaf] == P():
            np.testing.assert_array_equal(x, y)


def in_full(leaf, params, state):
    """A parameter with all that is known of it."""
    p = {leaf: params[leaf]}
    return p[leaf] if state.residual is None else full_precision(p, state)[leaf]
