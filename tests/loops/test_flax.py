"""Loops over models of Flax in which not all is trained, or not all alike.

`tests/flax` is about `optax_lamblion.flax`; these are loops that know nothing of it.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx, traverse_util
from flax.training.train_state import TrainState

from tests.loops import judge

STEPS = 4


def pure(model, wrt=nnx.Param):
    """The parameters, as arrays that a step does not change."""
    return jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, wrt)))


def train_nnx(model, optimizer, wrt, steps=STEPS):
    """A `Run` of the loop that the pages of Flax have."""

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_of(model):
            return jnp.mean((model(x) - y) ** 2)

        grads = nnx.grad(loss_of, argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, grads)

    start, before = pure(model, wrt), pure(optimizer, nnx.OptState)
    for x, y in zip(*judge.batches(steps), strict=True):
        step(model, optimizer, x, y)
    return judge.Run(start, pure(model, wrt), (before, pure(optimizer, nnx.OptState)))


class Adapted(nnx.Module):
    """A model of which all but a low-rank adapter and a head is frozen, as Tunix has them."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.base = nnx.LoRALinear(32, 8, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.base(x)))


def test_low_rank_adapters():
    """One of an adapter's matrices begins at zero, where LAMB has no norm to go by.

    As Tunix has it: what is given to `nnx.Optimizer` is a `MultiSteps`.
    """

    def loop(make):
        model = Adapted()
        tx = optax.MultiSteps(make(1e-2), every_k_schedule=2)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
        frozen = pure(model)
        run = train_nnx(model, optimizer, nnx.LoRAParam)
        assert judge.length(frozen["head"], pure(model)["head"]) == 0
        return run

    theirs, *_ = judge.compare(loop, judge.LAMB)
    assert len(jax.tree.leaves(theirs.end)) == 2


def test_a_head_by_a_filter_of_paths():
    wrt = nnx.All(nnx.Param, nnx.PathContains("head"))

    def loop(make):
        model = Adapted()
        tx = optax.chain(optax.clip_by_global_norm(1.0), make(1e-2))
        return train_nnx(model, nnx.Optimizer(model, tx, wrt=wrt), wrt)

    theirs, *_ = judge.compare(loop, judge.LION)
    assert set(theirs.end) == {"head"}


class Scanned(nnx.Module):
    """Layers that `nnx.vmap` makes and `nnx.scan` runs; their activations are made twice."""

    def __init__(self):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def layers(rngs):
            return nnx.Linear(32, 32, use_bias=False, rngs=rngs)

        rngs = nnx.Rngs(0)
        self.layers = layers(rngs)
        self.head = nnx.Linear(32, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def forward(layer, x):
            return x + jnp.tanh(layer(x))

        return self.head(forward(self.layers, x))


def test_scanned_layers():
    def loop(make):
        model = Scanned()
        return train_nnx(model, nnx.Optimizer(model, make(1e-2), wrt=nnx.Param), nnx.Param)

    theirs, *_ = judge.compare(loop, judge.LAMB)
    assert theirs.end["layers"]["kernel"].shape == (3, 32, 32)


class Classifier(nn.Module):
    """A model with a collection that no gradient is of."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(16, use_bias=False, name="dense")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(4, name="head")(nn.Dropout(0.1, deterministic=not train)(x))


class WithStatistics(TrainState):
    batch_stats: dict


def decay_mask(params):
    """Decays no bias and no norm, by name, as the examples of Transformers do."""
    flat = traverse_util.flatten_dict(params)
    decayed = {path: path[-1] != "bias" and path[-2:] != ("norm", "scale") for path in flat}
    return traverse_util.unflatten_dict(decayed)


def test_a_train_state_with_statistics_and_a_mask_of_names():
    model = Classifier()
    x, y = judge.batches(STEPS)
    variables = model.init(jax.random.key(0), x[0], train=False)

    def loop(make):
        start = state = WithStatistics.create(
            apply_fn=model.apply, tx=make(1e-2, mask=decay_mask), **variables
        )

        @jax.jit
        def step(state, x, y):
            dropout = {"dropout": jax.random.fold_in(jax.random.key(1), state.step)}

            def loss_of(params):
                out, new = state.apply_fn(
                    {"params": params, "batch_stats": state.batch_stats},
                    x, train=True, mutable=["batch_stats"], rngs=dropout,
                )  # fmt: skip
                return jnp.mean((out - y) ** 2), new

            grads, new = jax.grad(loss_of, has_aux=True)(state.params)
            return state.apply_gradients(grads=grads, **new)

        for batch in zip(x, y, strict=True):
            state = step(state, *batch)
        return judge.Run(start.params, state.params, (start.opt_state, state.opt_state))

    judge.compare(loop, judge.ADAMW)
