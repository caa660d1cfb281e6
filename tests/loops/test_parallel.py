"""Loops over several devices, as they are written without this library in mind."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.loops import judge

STEPS = 3


def make_mesh(name):
    return jax.make_mesh((4,), (name,), axis_types=(AxisType.Auto,))


def test_data_parallelism():
    """What `pmap` was for: every device has all parameters and a part of a batch."""
    mesh = make_mesh("batch")
    x, y = judge.batches(STEPS)

    def loop(make):
        tx = optax.chain(optax.clip_by_global_norm(1.0), make(1e-2))
        start = params = jax.device_put(judge.linear(), NamedSharding(mesh, P()))
        before = state = jax.device_put(tx.init(params), NamedSharding(mesh, P()))

        @jax.jit
        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("batch"), P("batch")), out_specs=P()
        )
        def step(params, state, x, y):
            params = jax.lax.pcast(params, "batch", to="varying")
            grads = jax.grad(judge.loss_of)(params, x, y)
            grads, params = jax.lax.pmean((grads, params), "batch")
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for batch in zip(x, y, strict=True):
            params, state = step(params, state, *batch)
        return judge.Run(start, params, (before, state))

    judge.compare(loop, judge.LAMB)


def test_fully_sharded_parameters_with_accumulated_gradients():
    """Shardings of a state are made of those of parameters as in Optax's own examples, and given to
    `jit`; micro-batches are added up by hand."""
    mesh = make_mesh("fsdp")
    x, y = judge.batches(STEPS)
    whole = NamedSharding(mesh, P())
    rows = {"kernel": NamedSharding(mesh, P("fsdp")), "bias": whole}

    def loop(make):
        tx = make(1e-2)
        start = params = jax.device_put(judge.linear(), rows)
        for_state = optax.tree.map_params(
            tx,
            lambda _, sharding: sharding,
            jax.eval_shape(tx.init, start),
            rows,
            transform_non_params=lambda _: whole,
        )
        before = state = jax.jit(tx.init, out_shardings=for_state)(params)

        @functools.partial(jax.jit, out_shardings=(rows, for_state))
        def step(params, state, x, y):
            @jax.checkpoint
            def loss_of(params, x, y):
                return judge.loss_of(params, x, y)

            def accumulate(total, batch):
                grads = jax.grad(loss_of)(params, *batch)
                return jax.tree.map(jnp.add, total, grads), None

            parts = jax.tree.map(lambda a: a.reshape(2, -1, a.shape[-1]), (x, y))
            zeros = optax.tree.zeros_like(params)
            total, _ = jax.lax.scan(accumulate, zeros, parts)
            updates, state = tx.update(optax.tree.scale(0.5, total), state, params)
            return optax.apply_updates(params, updates), state

        for batch in zip(x, y, strict=True):
            params, state = step(params, state, *batch)
        return judge.Run(start, params, (before, state))

    *_, coarse = judge.compare(loop, judge.ADAMW)
    assert coarse.end["kernel"].sharding.shard_shape((32, 4)) == (8, 4)
    # A scale for each of the four blocks, beside the rows that it is of.
    assert coarse.states[1].nu_absmax["kernel"].sharding.shard_shape((4,)) == (1,)
