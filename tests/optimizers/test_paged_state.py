"""Where the state of a paged optimizer is: made there, kept there, restored there."""

import gc
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused, paged_lion, paged_lion8bit, state_report
from optax_lamblion._paging import filler, placement
from tests.optimizers import problem
from tests.variants import every, rows_of

paged = every(lambda v: v.paged)
HOST = "pinned_host"


def find(state):
    """The optimizer's own state, inside whatever a wrapper made of it."""
    (own,) = filter(
        lambda x: hasattr(x, "mu_absmax"),
        jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu_absmax")),
    )
    return own


def kinds(tree):
    """The memory kinds of a tree of arrays, by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.sharding.memory_kind
        for path, x in jax.tree.leaves_with_path(tree)
    }


def assert_paged(v, state):
    """Large leaves' slots and scales on the host, everything else on the device."""
    own = find(state)
    for slot in v.slots:
        for name, x in getattr(own, slot).items():
            if isinstance(x, optax.MaskedNode):
                continue
            expected = HOST if name in problem.LARGE else "device"
            assert x.sharding.memory_kind == expected, (slot, name)
            if x.dtype == np.uint8:
                scales = getattr(own, f"{slot}_absmax")[name]
                assert scales.sharding.memory_kind == expected, (slot, name)
    assert own.count.sharding.memory_kind == "device"


# ------------------------------------------------------------------------------ made there


@paged
def test_state_is_made_on_the_host(v):
    p = problem.params()
    for init in (v().init, jax.jit(v().init)):
        assert_paged(v, init(p))


@paged
def test_nothing_of_it_is_made_on_the_device(v, monkeypatch):
    on_device = []
    for name in ("full", "full_like", "zeros", "zeros_like"):
        original = getattr(jnp, name)

        def spy(*args, original=original, **kwargs):
            x = original(*args, **kwargs)
            on_device.append(x.size)
            return x

        monkeypatch.setattr(jnp, name, spy)
    v().init(problem.params())
    assert on_device and max(on_device) <= 33


@pytest.mark.parametrize("size", [1000, 2**20, 2**20 + 1, 3 * 2**20 + 5])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_compiled_init_fills_every_page(size, dtype):
    """It writes them into memory that nobody has cleared."""

    @jax.jit
    def make(p):
        fill = filler.Filler(2**20)
        return [fill.zeros(p, (size,), dtype) for _ in range(2)]

    for x in make(jnp.zeros(3)):
        assert x.dtype == dtype and x.sharding.memory_kind == HOST
        np.testing.assert_array_equal(x, np.zeros(size, dtype))


def test_shapes_alone_say_where_state_will_be():
    shapes = jax.eval_shape(lambda: {"a": jnp.zeros((512, 512)), "b": jnp.zeros(16)})
    report = state_report(jax.eval_shape(paged_lion8bit().init, shapes))
    assert report.by_memory_kind == {HOST: 512 * 512 + 4 * 1024, "device": 4 + 4 * 16 + 4 + 4}


def test_the_report_says_where_state_is():
    p = {"a": jnp.zeros((512, 512)), "b": jnp.zeros(16)}
    report = state_report(paged_lion8bit().init(p))
    assert report.by_memory_kind == {HOST: 512 * 512 + 4 * 1024, "device": 4 + 4 * 16 + 4 + 4}
    assert [HOST, "266,240"] in [line.split()[1:] for line in str(report).splitlines()]


# ------------------------------------------------------------------------------ which leaves


def where(options, shapes, factory=paged_lion8bit, **kwargs):
    p = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    state = factory(options=options, **kwargs).init(p)
    return {name for name, x in state.mu.items() if x.sharding.memory_kind == HOST}


def test_leaves_from_page_min_size_on_are_paged():
    shapes = {"a": (100_000,), "b": (99_999,), "c": (7,)}
    assert where(StateOptions(), shapes) == {"a"}
    assert where(StateOptions(page_min_size=99_999), shapes) == {"a", "b"}
    assert where(StateOptions(page_min_size=0), shapes) == {"a", "b", "c"}
    assert where(StateOptions(page_min_size=10**6), shapes) == set()


def test_the_budget_is_filled_with_the_largest_leaves_that_fit():
    # 131072 elements are 131072 codes and 2048 bytes of scales.
    shapes = {"one": (1024, 128), "two": (2048, 128), "four": (4096, 128), "small": (1000,)}
    unit, small = 131072 + 2048, 4000
    budgets = {
        None: {"one", "two", "four"},
        0: {"one", "two", "four"},
        small + unit - 1: {"one", "two", "four"},
        small + unit: {"two", "four"},
        small + 3 * unit: {"four"},
        small + 4 * unit: {"one", "two"},
        small + 5 * unit: {"two"},
        small + 7 * unit: set(),
    }
    for budget, expected in budgets.items():
        assert where(StateOptions(device_budget=budget), shapes) == expected, budget


def test_paged_is_what_the_paged_names_say():
    p = problem.params()
    options = StateOptions(page_min_size=1000)
    for name in ("lion", "lion8bit", "lion32bit", "lamb", "lamb8bit", "lamb32bit"):
        state = getattr(optax_lamblion, name)(paged=True, options=options).init(p)
        by_name = getattr(optax_lamblion, f"paged_{name}")(options=options).init(p)
        problem.assert_equal(state, by_name)
        assert kinds(state) == kinds(by_name) and HOST in kinds(state).values()


@pytest.mark.parametrize("family", ["lion", "lamb"])
def test_building_blocks_can_be_paged(family):
    p, g = problem.params(), problem.grads()
    block = getattr(optax_lamblion, f"scale_by_{family}")
    options = StateOptions(page_min_size=1000)
    txs = [block(bits=8), block(bits=8, paged=True, options=options)]
    (u, _), (paged_u, state) = (jax.jit(tx.update)(g, tx.init(p), p) for tx in txs)
    problem.assert_equal(paged_u, u)
    assert state.mu["rows"].sharding.memory_kind == HOST


# ------------------------------------------------------------------------------- kept there


def wrapped(v):
    """The optimizer in each of Optax's wrappers."""
    injectable = {k: x for k, x in v.kwargs.items()} | {"options": v_options(v)}
    return {
        "alone": v(),
        "chain": optax.chain(optax.clip_by_global_norm(1.0), v()),
        "masked": optax.masked(v(), {"rows": True, "odd_tail": False, "small": True}),
        "partition": optax.partition(
            {"ours": v(), "theirs": optax.sgd(0.1)},
            {"rows": "ours", "odd_tail": "ours", "small": "theirs"},
        ),
        "inject_hyperparams": optax.inject_hyperparams(v.factory)(**injectable),
        "apply_if_finite": optax.apply_if_finite(v(), max_consecutive_errors=3),
        "conditionally_transform": optax.transforms.conditionally_transform(
            v(), lambda step: step % 2 == 0
        ),
    }


def v_options(v):
    return StateOptions(page_min_size=1000)


@pytest.mark.parametrize("donate", [(), (1,), (0, 1)], ids=["kept", "state", "both"])
@pytest.mark.parametrize("fused", [False, True], ids=["update", "apply_fused"])
@pytest.mark.parametrize("wrapper", sorted(wrapped(rows_of(lambda v: v.paged)[0])))
@every(lambda v: v.name in ("paged_lion8bit", "paged_lamb32bit"))
def test_state_stays_on_the_host(v, wrapper, fused, donate):
    tx = wrapped(v)[wrapper]

    def step(p, state, g):
        if fused:
            return apply_fused(tx, p, g, state)
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    step = jax.jit(step, donate_argnums=donate)
    p = problem.params()
    state = tx.init(p)
    for i in range(2):
        before = kinds(state)
        p, state = step(p, state, problem.grads(i))
        assert kinds(state) == before and HOST in before.values()
    assert set(kinds(p).values()) == {"device"}


@paged
def test_state_stays_on_the_host_through_scan(v):
    tx = v()
    p = problem.params()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(problem.grads, (1, 2, 3)))

    @jax.jit
    def train(p, state, gs):
        step = lambda carry, g: (apply_fused(tx, carry[0], g, carry[1]), None)  # noqa: E731
        return jax.lax.scan(step, (p, state), gs)[0]

    _, state = train(p, tx.init(p), stacked)
    assert_paged(v, state)


@paged
def test_an_eager_step_leaves_state_on_the_host(v):
    tx, p = v(), problem.params()
    _, state = tx.update(problem.grads(), tx.init(p), p)
    assert_paged(v, state)


@paged
def test_state_goes_where_the_optimizer_keeps_it(v):
    """From another place it comes there with the first step: nobody has to move a checkpoint."""
    p, g = problem.params(), problem.grads()
    resident, tx = v.resident(), v()
    expected = jax.jit(resident.update)(g, resident.init(p), p)
    updates, state = jax.jit(tx.update)(g, resident.init(p), p)
    problem.assert_equal((updates, state), expected)
    assert_paged(v, state)
    updates, state = jax.jit(resident.update)(g, tx.init(p), p)
    problem.assert_equal((updates, state), expected)
    assert set(kinds(state).values()) == {"device"}


@paged
def test_a_type_that_does_not_say_so_makes_no_difference(v):
    """JAX forgets the memory in the type of an array that was put together from its shards."""
    tx, p, g = v(), problem.params(), problem.grads()
    state = tx.init(p)

    def rebuilt(x):
        shards = [s.data for s in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)

    same = jax.tree.map(rebuilt, state)
    assert kinds(same) == kinds(state)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p), donate_argnums=1)
    expected = jax.jit(tx.update)(g, state, p)
    updates, after = step(g, same, p)
    problem.assert_equal((updates, after), expected)
    assert_paged(v, after)


# --------------------------------------------------------------------------- restored there


@paged
def test_a_checkpoint_is_restored_to_the_host(v, tmp_path, monkeypatch):
    tx = v()
    p, state, _ = problem.run(tx, 2)
    like = tx.init(problem.params())
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", (p, state))
        checkpointer.wait_until_finished()
        # What is made while it is restored, by kind of memory.
        sizes = {HOST: [], "device": []}
        put = jax.device_put

        def spy(x, where=None, **kwargs):
            out = put(x, where, **kwargs)
            for leaf in jax.tree.leaves(out):
                sizes[leaf.sharding.memory_kind].append(leaf.size)
            return out

        monkeypatch.setattr(jax, "device_put", spy)
        target = jax.tree.map(orbax.checkpoint.utils.to_shape_dtype_struct, (p, like))
        restored = checkpointer.restore(tmp_path / "checkpoint", target)
        monkeypatch.undo()
    assert_paged(v, restored[1])
    problem.assert_equal(restored, (p, state))
    largest = max(x.size for x in jax.tree.leaves(p))
    assert sizes[HOST] and max(sizes[HOST]) == largest
    # The parameters themselves, and nothing else of that size.
    assert sum(size >= 1000 for size in sizes["device"]) <= len(problem.LARGE)
    problem.assert_equal(
        problem.run(tx, 1, start=restored, first=3), problem.run(tx, 1, start=(p, state), first=3)
    )


# ------------------------------------------------------------------------- accumulated gradients


def test_multi_steps_is_refused_with_a_substitute():
    tx = optax.MultiSteps(paged_lion8bit(), 2)
    with pytest.raises(ValueError, match="host's processor.*\n.*optax.chain") as error:
        tx.init(problem.params())
    assert "conditionally_transform" in str(error.value)
    state = optax.MultiSteps(optax_lamblion.lion8bit(), 2).init(problem.params())
    with pytest.raises(ValueError, match="MultiSteps"):
        jax.jit(tx.update)(problem.grads(), state, problem.params())
    deep = optax.MultiSteps(optax.chain(optax.scale(1.0), paged_lion8bit()), 2)
    with pytest.raises(ValueError, match="MultiSteps"):
        deep.init(problem.params())


@paged
def test_the_substitute_steps_with_the_mean_gradient(v):
    k, own = 3, v()
    tx = optax.chain(
        optax.MultiSteps(optax.identity(), k).gradient_transformation(),
        optax.transforms.conditionally_transform(own, lambda step: step % k == k - 1),
    )
    p = problem.params()
    state = tx.init(p)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps itself needs it
        update = jax.jit(tx.update)
        for i in range(2 * k):
            updates, state = update(problem.grads(i), state, p)
            if i % k < k - 1:
                assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert_paged(v, state)
    expected_state = own.init(p)
    for first in (0, k):
        gs = map(problem.grads, range(first, first + k))
        mean = jax.tree.map(lambda *g: sum(g) / k, *gs)
        expected, expected_state = own.update(mean, expected_state, p)
    problem.assert_near((updates, find(state)), (expected, expected_state), rtol=1e-4)


# ----------------------------------------------------------------------------------- errors


@paged
def test_a_platform_without_pinned_memory_is_named(v, monkeypatch):
    monkeypatch.setattr(placement, "memory_kinds", lambda device: {"device"})
    resident = v.resident.name if v.bits == 8 else v.family
    message = f'"{HOST}", which cpu does not have; it has device. Use `{resident}`'
    for init in (v().init, jax.jit(v().init)):
        with pytest.raises(ValueError, match=message):
            init(problem.params())


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("page_min_size", -1, "`page_min_size` must be 0 or more, got -1"),
        ("page_bytes", 1000, "`page_bytes` must be 1048576 or more, got 1000"),
        ("pages_in_flight", 0, "`pages_in_flight` must be 1 or more, got 0"),
        ("device_budget", -5, "`device_budget` must be 0 or more, got -5"),
    ],
)
def test_values_that_are_not_offered_are_named(option, value, error):
    with pytest.raises(ValueError, match=error):
        StateOptions(**{option: value})
    with pytest.raises(TypeError, match=f"`{option}` must be a Python int, got float"):
        StateOptions(**{option: 1e9})


def test_paged_must_be_a_bool():
    with pytest.raises(TypeError, match="`paged` must be True or False, got 1"):
        optax_lamblion.lion(paged=1)


def test_paged_names_have_no_argument_to_turn_it_off():
    assert "paged" not in inspect.signature(paged_lion).parameters


def test_a_paged_state_can_be_collected():
    """Nothing holds on to the arrays of a state that its owner has given up."""
    p = {"a": jnp.zeros((1024, 1024))}
    gc.collect()
    before = len(jax.live_arrays())
    state = paged_lion8bit().init(p)
    _, state = paged_lion8bit().update(p, state, p)
    del state, _
    gc.collect()
    assert len(jax.live_arrays()) <= before + 2
