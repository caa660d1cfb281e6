"""Many trainings in one program: over seeds, over learning rates, over clients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_lamblion import convert_state, lion32bit
from tests.loops import judge


def test_ppo_over_seeds():
    """As PureJaxRL has it: `vmap` over a whole training, from the key to the last step."""
    x, _ = judge.data()
    best = jnp.argmax(x[:, :4], axis=1)  # the action that is rewarded
    updates, epochs = 2, 2

    def loss_of(params, actions, old, advantages):
        log_probs = jax.nn.log_softmax(x @ params["kernel"] + params["bias"])
        log_prob = jnp.take_along_axis(log_probs, actions[:, None], axis=1)[:, 0]
        ratio = jnp.exp(log_prob - old)
        clipped = jnp.clip(ratio, 0.8, 1.2)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=1)
        return -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages) + 0.01 * entropy)

    def loop(make):
        def annealed(count):
            return 1e-2 * (1 - (count // epochs) / updates)

        tx = optax.chain(optax.clip_by_global_norm(0.5), make(annealed))

        def train(key):
            key, to_begin = jax.random.split(key)
            kernel = 0.1 * jax.random.normal(to_begin, (32, 4))
            start = {"kernel": kernel, "bias": jnp.zeros(4)}

            def update(carry, key):
                params, state = carry
                logits = x @ params["kernel"] + params["bias"]
                actions = jax.random.categorical(key, logits)
                old = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)[:, 0]
                rewards = (actions == best).astype(jnp.float32)
                advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)

                def epoch(carry, _):
                    params, state = carry
                    grads = jax.grad(loss_of)(params, actions, old, advantages)
                    steps, state = tx.update(grads, state, params)
                    return (optax.apply_updates(params, steps), state), None

                return jax.lax.scan(epoch, (params, state), length=epochs)[0], None

            before = tx.init(start)
            (end, state), _ = jax.lax.scan(update, (start, before), jax.random.split(key, updates))
            return judge.Run(start, end, (before, state))

        return jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 3))

    judge.compare(loop, judge.ADAMW)


def test_a_population_of_learning_rates():
    """Every member's optimizer is built inside of `vmap`, with a learning rate that is traced."""
    batches = judge.batches(4)

    def loop(make):
        def train(learning_rate):
            tx = make(learning_rate)
            start = judge.linear()
            before = tx.init(start)

            def step(carry, batch):
                params, state = carry
                grads = jax.grad(judge.loss_of)(params, *batch)
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            (end, state), _ = jax.lax.scan(step, (start, before), batches)
            return judge.Run(start, end, (before, state))

        return jax.jit(jax.vmap(train))(jnp.array([1e-3, 1e-2, 1e-1]))

    theirs, *_ = judge.compare(loop, judge.LION)
    ways = [judge.length(*(x["kernel"][i] for x in theirs[:2])) for i in range(3)]
    assert ways[0] < ways[1] < ways[2]


def test_population_based_training():
    """The worse half goes on from the better one: parameters, state and a learning rate like it."""
    x, y = judge.batches(4)

    def loop(make):
        tx = optax.inject_hyperparams(make)(1e-2)
        models = [judge.linear(seed) for seed in range(4)]
        start = params = jax.tree.map(lambda *x: jnp.stack(x), *models)
        before = jax.vmap(tx.init)(start)
        rates = jnp.array([1e-3, 3e-3, 1e-2, 3e-2])
        state = before = optax.tree.set(before, learning_rate=rates)

        @jax.jit
        @jax.vmap
        def step(params, state, x, y):
            loss, grads = jax.value_and_grad(judge.loss_of)(params, x, y)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        for i in range(4):
            everyone = jax.tree.map(lambda a, i=i: jnp.stack([a[i]] * 4), (x, y))
            params, state, losses = step(params, state, *everyone)
            if i == 1:
                order = jnp.argsort(losses)
                source = jnp.concatenate([order[:2], order[:2]])
                params, state = jax.tree.map(lambda a, s=source: a[s], (params, state))
                factors = jnp.array([1.0, 1.0, 1.2, 0.8])
                rates = optax.tree.get(state, "learning_rate") * factors
                state = optax.tree.set(state, learning_rate=rates)
        return judge.Run(start, params, (before, state))

    judge.compare(loop, judge.LAMB)


def test_federated_averaging_of_states():
    """Clients step by themselves; the server averages parameters and states, and sends them out.

    Means are of numbers, and codes are none: a state in 8 bits is averaged in 32.
    """
    rounds, clients = 2, 3
    x, y = (a.reshape(rounds, clients, 2, *a.shape[1:]) for a in judge.batches(12))
    exact = lion32bit()

    def mean(tree):
        return jax.tree.map(lambda a: jnp.mean(a, axis=0).astype(a.dtype), tree)

    def loop(make):
        tx = make(1e-2)
        start = params = judge.linear()
        before = state = tx.init(start)
        coded = any(a.dtype == np.uint8 for a in jax.tree.leaves(before))

        @jax.jit
        def one_round(params, state, x, y):
            @jax.vmap
            def client(x, y):
                def step(carry, batch):
                    params, state = carry
                    grads = jax.grad(judge.loss_of)(params, *batch)
                    updates, state = tx.update(grads, state, params)
                    return (optax.apply_updates(params, updates), state), None

                return jax.lax.scan(step, (params, state), (x, y))[0]

            params, states = client(x, y)
            params = mean(params)
            if coded:
                states = jax.vmap(lambda state: convert_state(state, params, exact))(states)
            state = mean(states)
            return params, convert_state(state, params, tx) if coded else state

        for batch in zip(x, y, strict=True):
            params, state = one_round(params, state, *batch)
        return judge.Run(start, params, (before, state))

    judge.compare(loop, judge.LION)


def test_learning_to_learn():
    """The derivative of what some steps come to, by where they start and by their learning rate."""
    x, y = judge.batches(4)

    def loop(make):
        start = judge.linear(), jnp.log(jnp.float32(1e-2))

        def outcome(outer):
            params, log_rate = outer
            tx = make(jnp.exp(log_rate))
            before = tx.init(params)

            @jax.checkpoint
            def step(carry, batch):
                params, state = carry
                grads = jax.grad(judge.loss_of)(params, *batch)
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            (params, state), _ = jax.lax.scan(step, (params, before), (x[:3], y[:3]))
            return judge.loss_of(params, x[3], y[3]), (before, state)

        grads, states = jax.jit(jax.grad(outcome, has_aux=True))(start)
        end = jax.tree.map(lambda p, g: p - 0.1 * g, start, grads)
        return judge.Run(start, end, states)

    # Codes have no derivative (docs/rounding.md): in 8 bits what goes through moments is missing.
    judge.compare(loop, judge.ADAMW, near=0.4)
