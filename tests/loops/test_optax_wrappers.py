"""Loops through Optax's wrappers, from nanodo's `MultiSteps` to those of `optax.contrib`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.loops import judge

STEPS = 6


def train(tx, start, gradient):
    """A `Run` of some steps. `gradient` makes a loss and a gradient of parameters and a batch."""
    tx = optax.with_extra_args_support(tx)
    before = tx.init(start)

    @jax.jit
    def run(params, state):
        def step(carry, batch):
            params, state = carry
            loss, grads = gradient(params, *batch)
            updates, state = tx.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), judge.batches(STEPS))[0]

    end, state = run(start, before)
    return judge.Run(start, end, (before, state))


gradient = jax.value_and_grad(judge.loss_of)


# ---------------------------------------------------------------- wrappers that change no arguments


def nanodo(make):
    """Every optimizer is wrapped, although nothing is accumulated."""
    return optax.MultiSteps(make(1e-2), 1).gradient_transformation()


def growing_batches(make):
    """Two micro-steps at first and three later, without those that are not finite."""
    growing = optax.MultiSteps(
        make(1e-2),
        lambda step: jnp.where(step < 1, 2, 3),
        should_skip_update_fn=optax.skip_not_finite,
    )
    return growing.gradient_transformation()


def of_everything(make):
    """What is put before and behind an optimizer, in one chain."""
    return optax.named_chain(
        ("zero_nans", optax.zero_nans()),
        ("clip", optax.clip_by_global_norm(1.0)),
        ("optimizer", make(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 20))),
        ("smooth", optax.ema(0.5)),
        ("plateau", optax.contrib.reduce_on_plateau(patience=2, accumulation_size=2)),
    )


def galore(make):
    """Gradients of low rank: the optimizer sees arrays of other shapes, and no parameters."""
    direction = optax.chain(make(1.0), optax.scale(-1.0))
    return optax.contrib.galore(1e-2, rank=2, update_proj_gap=3, base_optimizer=direction)


# With a decay, `optax.adamw` would ask for parameters, even if that is zero.
ADAM = judge.Family(
    lambda learning_rate, **_: optax.adam(learning_rate), "adamw", dict(weight_decay=0.0)
)

WRAPPERS = {
    "multi-steps-of-one": (nanodo, judge.LION),
    "growing-batches": (growing_batches, judge.ADAMW),
    "chain": (of_everything, judge.LAMB),
    "injected": (
        lambda make: optax.inject_hyperparams(make)(optax.linear_schedule(1e-2, 0.0, 9)),
        judge.ADAMW,
    ),
    "finite": (lambda make: optax.apply_if_finite(make(1e-2), 3), judge.LAMB),
    "flat": (lambda make: optax.flatten(make(1e-2)), judge.ADAMW),
    "mechanic": (lambda make: optax.contrib.mechanize(make(1e-2), s_init=0.1), judge.LION),
    "galore": (galore, ADAM),
}


@pytest.mark.parametrize("wrap, family", WRAPPERS.values(), ids=WRAPPERS)
def test_a_training_through(wrap, family):
    judge.compare(lambda make: train(wrap(make), judge.linear(), gradient), family)


# ----------------------------------------------------------------- wrappers that change what is run


def test_lookahead():
    """Fast parameters and slow ones, and a state that is set back when they meet."""

    def loop(make):
        tx = optax.lookahead(make(1e-2), sync_period=4, slow_step_size=0.5, reset_state=True)
        start = optax.LookaheadParams.init_synced(judge.linear())
        return train(tx, start, lambda params, x, y: gradient(params.fast, x, y))

    judge.compare(loop, judge.ADAMW)


def test_schedule_free():
    """The momentum is the wrapper's, so the optimizer has none, and the average is evaluated."""

    def loop(make):
        tx = optax.contrib.schedule_free(make(1e-2, b1=0.0), learning_rate=1e-2, b1=0.9)
        run = train(tx, judge.linear(), gradient)
        averaged = optax.contrib.schedule_free_eval_params(run.states[1], run.end)
        return run._replace(end=averaged)

    judge.compare(loop, judge.ADAMW)


def test_sharpness_aware_minimisation():
    def loop(make):
        up = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
        init, update = optax.contrib.sam(make(1e-2), up, sync_period=2)
        return train(optax.GradientTransformation(init, update), judge.linear(), gradient)

    judge.compare(loop, judge.LION)


def test_privacy():
    """Gradients of single examples go in, and the optimizer sees their noisy sum."""

    of_examples = jax.vmap(gradient, in_axes=(None, 0, 0))

    def loop(make):
        private = optax.contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0))
        return train(optax.chain(private, make(1e-2)), judge.linear(), of_examples)

    judge.compare(loop, judge.LAMB)


def test_complex_parameters():
    """As those of NetKet's wave functions: the loss is real, and its gradient conjugated."""

    def loss_of(params, x, y):
        psi = x @ params["kernel"] + params["bias"]
        return jnp.mean(jnp.abs(psi - jnp.exp(1j * y)) ** 2)

    def conjugate(params, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        return loss, jax.tree.map(jnp.conj, grads)

    def loop(make):
        tx = optax.contrib.split_real_and_imaginary(make(1e-2))
        real, imaginary = judge.linear(0), judge.linear(1)
        start = jax.tree.map(lambda a, b: a + 1j * b, real, imaginary)
        return train(tx, start, conjugate)

    judge.compare(loop, judge.LION)


# ----------------------------------------------------------------------------- looking into a state


def test_states_are_read_and_set_by_name():
    """A learning rate that is halved from outside, as loops do with `optax.tree`."""

    def loop(make):
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(make)(1e-2))
        start = params = judge.linear()
        before = state = tx.init(params)
        update = jax.jit(tx.update)
        x, y = judge.batches(4)
        for step in range(4):
            if step == 2:
                halved = optax.tree.get(state, "learning_rate") / 2
                state = optax.tree.set(state, learning_rate=halved)
            _, grads = gradient(params, x[step], y[step])
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        counts = [value for _, value in optax.tree.get_all_with_path(state, "count")]
        assert set(map(int, counts)) == {4}
        assert optax.tree.get(state, "mu")["bias"].shape == (4,)
        assert np.isfinite(optax.tree.norm(optax.tree.cast(state, jnp.float32)))
        return judge.Run(start, params, (before, state))

    judge.compare(loop, judge.LION)
