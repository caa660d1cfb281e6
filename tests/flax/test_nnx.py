"""Optimizers in `nnx.Optimizer`, and in the one of this package."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optax_lamblion import StateOptions, lamb8bit, lion8bit, lion32bit, paged_lion8bit
from optax_lamblion.flax import Optimizer
from tests.flax import problem
from tests.flax.problem import params_of, state_of
from tests.optimizers.test_apply_fused import assert_two_ulp
from tests.variants import every

EITHER = pytest.mark.parametrize("kind", [nnx.Optimizer, Optimizer], ids=["flax", "ours"])
PAGED = StateOptions(page_min_size=1000)


def make(kind, tx, model=None):
    model = model or problem.Model()
    return model, kind(model, tx, wrt=nnx.Param)


# ---------------------------------------------------------------------------------------- training


@every()
def test_training_with_donation(v):
    model, optimizer = make(nnx.Optimizer, v())
    before = problem.forms(optimizer)
    assert ("pinned_host" in {kind for *_, kind in before}) == v.paged
    # Compiling takes the time, so all that is claimed is claimed of one program.
    step = nnx.jit(problem.train, donate_argnums=(0, 1)).lower(model, optimizer).compile()

    # It writes over all that model and optimizer have ...
    assert step.memory_analysis().alias_size_in_bytes == problem.size((model, optimizer))
    old = jax.tree.leaves((model, optimizer))
    losses = [float(step(model, optimizer)) for _ in range(3)]
    assert all(x.is_deleted() for x in old)
    # ... and trains, with a state that stays what and where it was.
    assert losses[0] > losses[1] > losses[2]
    assert int(optimizer.step[...]) == int(state_of(optimizer).count) == 3
    assert problem.forms(optimizer) == before

    # Divided and put together, both go on as if nothing had happened.
    graphdef, state = nnx.split((model, optimizer))
    again = nnx.merge(graphdef, problem.copy(state))
    assert step(*again) == step(model, optimizer)
    problem.assert_equal(again, (model, optimizer))


def test_without_donation_state_stays_in_host_memory():
    model, optimizer = make(nnx.Optimizer, paged_lion8bit(options=PAGED))
    before = problem.forms(optimizer)
    nnx.jit(problem.train)(model, optimizer)
    assert problem.forms(optimizer) == before


def test_jax_jit_donates_what_was_split():
    model, optimizer = make(Optimizer, paged_lion8bit(1e-2, options=PAGED))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(graphdef, state):
        model, optimizer = nnx.merge(graphdef, state)
        loss = problem.train(model, optimizer)
        return nnx.state((model, optimizer)), loss

    graphdef, state = nnx.split((model, optimizer))
    size, before = problem.size(state), problem.forms(state)
    memory = step.lower(graphdef, state).compile().memory_analysis()
    assert memory.alias_size_in_bytes == size
    state, loss = step(graphdef, state)
    assert problem.forms(state) == before
    nnx.update((model, optimizer), state)
    assert problem.cross_entropy(model(problem.TOKENS)) < loss


# --------------------------------------------------------------------------------- in place


# `lion` is `lion32bit` by another name, and so on.
@every()
def test_a_step_needs_no_updates(v):
    model, plain = make(nnx.Optimizer, v())
    twin, fused = make(Optimizer, v())
    step = nnx.jit(problem.update, donate_argnums=(0, 1))
    grads = problem.gradients(model)
    theirs = step.lower(model, plain, grads).compile()
    ours = step.lower(twin, fused, grads).compile()

    # It writes over all that there is, and needs no more beside that than the page says.
    assert ours.memory_analysis().alias_size_in_bytes == problem.size((twin, fused))
    size = sum(p.size for p in jax.tree.leaves(grads))
    needed = [x.memory_analysis().temp_size_in_bytes / size for x in (theirs, ours)]
    assert needed == pytest.approx(problem.temporary(v), abs=0.005)  # two decimals

    for seed in range(2):
        grads = problem.gradients(model, seed=seed)
        old = jax.tree.map(np.array, params_of(model))
        theirs(model, plain, grads)
        ours(twin, fused, grads)
        jax.tree.map(assert_two_ulp, params_of(twin), params_of(model), old)
        problem.assert_equal(state_of(fused), state_of(plain))
        nnx.update(twin, problem.copy(nnx.state(model)))  # the next step has the same start
    assert int(fused.step[...]) == 2


def test_extra_arguments_reach_the_transformation():
    seen = []

    def update(updates, state, params=None, *, value, **extra_args):
        seen.append(value)
        return updates, state

    observe = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    model, optimizer = make(Optimizer, optax.chain(observe, lion8bit(1e-3)))
    optimizer.update(model, problem.gradients(model), value=3.0)
    assert seen == [3.0]


def test_gradients_are_multiplied_by_grad_scale():
    model, optimizer = make(Optimizer, lion8bit(1e-3))
    twin, expected = make(Optimizer, lion8bit(1e-3))
    grads = problem.gradients(model)
    optimizer.update(model, jax.tree.map(lambda x: 2 * x, grads), grad_scale=0.5)
    expected.update(twin, grads)
    problem.assert_equal((model, optimizer), (twin, expected))


@EITHER
def test_wrt_says_what_is_stepped(kind):
    layer = nnx.LoRA(
        256, 16, 256, base_module=nnx.Linear(256, 256, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)
    )
    optimizer = kind(layer, lion8bit(1e-3), wrt=nnx.LoRAParam)
    assert {x.size for x in jax.tree.leaves(state_of(optimizer).mu)} == {16 * 256}
    old = jax.tree.map(np.array, nnx.as_pure(nnx.state(layer)))
    optimizer.update(layer, problem.gradients(layer, nnx.LoRAParam))
    new = nnx.as_pure(nnx.state(layer))
    changed = jax.tree.map(lambda x, y: not np.array_equal(x, y), new, old)
    assert nnx.to_pure_dict(changed) == {
        "base_module": {"bias": False, "kernel": False},
        "lora_a": True,
        "lora_b": True,
    }


# ------------------------------------------------------------------------------------------- names

NAMES = {"embed/embedding", "layers/0/kernel", "layers/0/bias"}


@EITHER
def test_names_are_attributes_joined_by_slashes(kind):
    seen = set()

    def keep(path):
        seen.add(path)
        return path.endswith("embedding")

    _, optimizer = make(kind, lion8bit(options=StateOptions(keep_32bit=keep)))
    assert seen == NAMES
    assert state_of(optimizer).mu["embed"]["embedding"].dtype == jnp.float32
    assert state_of(optimizer).mu["layers"][0]["kernel"].dtype == jnp.uint8


@EITHER
def test_init_and_update_see_the_same_names(kind):
    """`nnx.Optimizer` makes a state for variables and steps without them."""
    options = StateOptions(stacked=lambda path: path.endswith("kernel"))
    model, optimizer = make(kind, lion8bit(percentile_clipping=5, options=options))
    before = jax.tree.map(jnp.shape, state_of(optimizer))
    assert before.gnorm_history["layers"][0]["kernel"] == (1024, 100)
    optimizer.update(model, problem.gradients(model))
    assert jax.tree.map(jnp.shape, state_of(optimizer)) == before


def test_second_moments_are_rounded_alike_with_variables_and_without():
    """The random numbers come from names."""
    tx, model = lamb8bit(), problem.Model()
    params, grads = nnx.state(model, nnx.Param), problem.gradients(model)
    _, boxed = tx.update(grads, tx.init(params), params)
    params, grads = nnx.as_pure((params, grads))
    _, bare = tx.update(grads, tx.init(params), params)
    problem.assert_equal(boxed.nu, bare.nu)


@EITHER
def test_errors_name_leaves_as_options_do(kind):
    model, optimizer = make(kind, lion8bit())
    optimizer.tx = lion32bit()
    with pytest.raises(ValueError, match=r"mu\['embed/embedding'\] is in 8 bits"):
        optimizer.update(model, problem.gradients(model))


# ---------------------------------------------------------------------------------------- wrappers


def are_kernels(params):
    """A mask by path, as on the page."""
    return jax.tree.map_with_path(lambda path, p: "kernel" in jax.tree_util.keystr(path), params)


def labels(params):
    return jax.tree.map(lambda kernel: "ours" if kernel else "rest", are_kernels(params))


WRAPPERS = {
    "mask": lion8bit(1e-2, weight_decay=0.1, mask=are_kernels),
    "masked": optax.masked(lion8bit(1e-2), are_kernels),
    "partition": optax.partition({"ours": lion8bit(1e-2), "rest": optax.sgd(0.1)}, labels),
    "inject_hyperparams": optax.inject_hyperparams(lion8bit)(1e-2),
}


@pytest.mark.parametrize("tx", WRAPPERS.values(), ids=WRAPPERS)
def test_works_through_wrappers(tx):
    """Parameters come out as those of a step over dicts, without Flax."""
    model, plain = make(nnx.Optimizer, tx)
    twin, fused = make(Optimizer, tx)
    grads = problem.gradients(model)
    old, g = (nnx.to_pure_dict(x) for x in (nnx.state(model, nnx.Param), grads))
    updates, _ = jax.jit(tx.update)(g, tx.init(old), old)
    expected = optax.apply_updates(old, updates)
    for stepped, optimizer in [(model, plain), (twin, fused)]:
        nnx.jit(problem.update)(stepped, optimizer, grads)
        new = nnx.to_pure_dict(nnx.state(stepped, nnx.Param))
        jax.tree.map(assert_two_ulp, new, expected, old)
        assert not np.array_equal(new["layers"][0]["kernel"], old["layers"][0]["kernel"])
