"""Loops over transformed functions of Haiku, in half precision and with several optimizers."""

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import optax

from tests.loops import judge

STEPS = 5


@hk.without_apply_rng
@hk.transform
def network(x):
    x = hk.Linear(16, name="torso")(x)
    return hk.Linear(4, name="head")(jax.nn.relu(x))


def test_half_precision_with_a_dynamic_loss_scale():
    """The first gradients overflow: their steps are not taken, and the scale is halved."""
    x, y = judge.batches(STEPS)
    policy = jmp.get_policy("params=float32,compute=float16,output=float32")
    start = network.init(jax.random.key(0), x[0])

    def scaled_loss(params, scale, x, y):
        params, x = policy.cast_to_compute((params, x))
        out = policy.cast_to_output(network.apply(params, x))
        return scale.scale(jnp.mean((out - y) ** 2))

    def loop(make):
        tx = optax.chain(optax.clip_by_global_norm(1.0), make(1e-2))
        before = tx.init(start)

        @jax.jit
        def step(params, state, scale, x, y):
            grads = scale.unscale(jax.grad(scaled_loss)(params, scale, x, y))
            finite = jmp.all_finite(grads)
            updates, new_state = tx.update(grads, state, params)
            new = optax.apply_updates(params, updates), new_state
            params, state = jmp.select_tree(finite, new, (params, state))
            return params, state, scale.adjust(finite)

        scale = jmp.DynamicLossScale(jnp.float32(2.0**20))
        params, state = start, before
        for batch in zip(x, y, strict=True):
            params, state, scale = step(params, state, scale, *batch)
        steps = optax.tree.get(state, "count")
        assert 0 < steps < STEPS and scale.loss_scale < 2.0**20
        return judge.Run(start, params, (before, state))

    # Gradients have eleven bits, so that what rounds a parameter elsewhere can move one by 2**-11.
    judge.compare(loop, judge.ADAMW, same=1e-3)


def test_optimizers_for_parts_with_averaged_parameters():
    """An actor's loop: one optimizer for the torso, one for the head, and a target network."""
    x, y = judge.batches(STEPS)
    start = network.init(jax.random.key(0), x[0])
    labels = hk.data_structures.map(lambda module, name, value: module, start)

    def loop(make):
        tx = optax.multi_transform({"torso": make(1e-2), "head": make(1e-3)}, labels)
        before = tx.init(start)

        @jax.jit
        def step(params, target, state, x, y):
            def loss_of(params):
                bootstrapped = y + 0.1 * network.apply(target, x)
                return jnp.mean((network.apply(params, x) - bootstrapped) ** 2)

            updates, state = tx.update(jax.grad(loss_of)(params), state, params)
            params = optax.apply_updates(params, updates)
            return params, optax.incremental_update(params, target, 0.1), state

        params, target, state = start, start, before
        for batch in zip(x, y, strict=True):
            params, target, state = step(params, target, state, *batch)
        return judge.Run((start, start), (params, target), (before, state))

    judge.compare(loop, judge.LION)
