"""Loops over modules of Equinox, whose leaves are not all arrays."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_lamblion import lamb8bit
from tests.loops import judge

STEPS = 5


def mlp(seed=0):
    """A model with functions for leaves: its activations."""
    sizes = dict(in_size=32, out_size=4, width_size=8, depth=1)
    no_biases = dict(use_bias=False, use_final_bias=False)
    return eqx.nn.MLP(**sizes, **no_biases, activation=jnp.tanh, key=jax.random.key(seed))


def loss_of(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def arrays(model):
    return eqx.filter(model, eqx.is_inexact_array)


def test_a_filtered_step():
    """With a mask that is a model of bools, and can be called as models can."""
    x, y = judge.data()
    all_decay = jax.tree.map(lambda _: True, arrays(mlp()))
    mask = eqx.tree_at(lambda m: m.layers[-1].weight, all_decay, replace=False)

    def loop(make):
        model = mlp()
        tx = optax.chain(optax.clip_by_global_norm(1.0), make(1e-2, mask=mask))
        state = before = tx.init(arrays(model))

        @eqx.filter_jit
        def step(model, state):
            _, grads = eqx.filter_value_and_grad(loss_of)(model, x, y)
            updates, state = tx.update(grads, state, arrays(model))
            return eqx.apply_updates(model, updates), state

        for _ in range(STEPS):
            model, state = step(model, state)
        return judge.Run(arrays(mlp()), arrays(model), (before, state))

    judge.compare(loop, judge.ADAMW)


def test_frozen_layers_in_a_scan():
    """The last layer alone is trained, and what is not an array stays outside."""
    x, y = judge.data()
    model = mlp()
    nothing = jax.tree.map(lambda _: False, model)
    trained = eqx.tree_at(lambda m: m.layers[-1].weight, nothing, replace=True)

    def loop(make):
        tx = make(1e-2)
        params, frozen = eqx.partition(model, trained)

        @jax.jit
        def train(params, state):
            def step(carry, _):
                params, state = carry
                grads = jax.grad(lambda p: loss_of(eqx.combine(p, frozen), x, y))(params)
                updates, state = tx.update(grads, state, params)
                return (eqx.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), length=STEPS)[0]

        before = tx.init(params)
        end, state = train(params, before)
        return judge.Run(params, end, (before, state))

    theirs, *_ = judge.compare(loop, judge.LION)
    assert len(jax.tree.leaves(theirs.end)) == 1


def test_an_ensemble_of_modules():
    """Models, and the states of their optimizers, are stacked by `filter_vmap`."""
    x, y = judge.data()
    start = eqx.filter_jit(eqx.filter_vmap(mlp))(jnp.arange(3))

    def loop(make):
        tx = make(1e-2)
        before = eqx.filter_vmap(lambda model: tx.init(arrays(model)))(start)

        @eqx.filter_jit
        @eqx.filter_vmap(in_axes=(eqx.if_array(0), eqx.if_array(0)))
        def step(model, state):
            grads = eqx.filter_grad(loss_of)(model, x, y)
            updates, state = tx.update(grads, state, arrays(model))
            return eqx.apply_updates(model, updates), state

        models, state = start, before
        for _ in range(STEPS):
            models, state = step(models, state)
        return judge.Run(arrays(start), arrays(models), (before, state))

    judge.compare(loop, judge.LAMB)


def test_leaves_that_were_serialised_go_on(tmp_path):
    x, y = judge.data()
    tx = lamb8bit(1e-2, weight_decay=0.1, options=judge.OPTIONS)

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(loss_of)(model, x, y)
        updates, state = tx.update(grads, state, arrays(model))
        return eqx.apply_updates(model, updates), state

    first = step(mlp(), tx.init(arrays(mlp())))
    eqx.tree_serialise_leaves(tmp_path / "run.eqx", first)
    like = eqx.filter_eval_shape(lambda: (mlp(), tx.init(arrays(mlp()))))
    loaded = eqx.tree_deserialise_leaves(tmp_path / "run.eqx", like)
    for a, b in zip(jax.tree.leaves(step(*loaded)), jax.tree.leaves(step(*first)), strict=True):
        if eqx.is_array(a):
            np.testing.assert_array_equal(a, b)
