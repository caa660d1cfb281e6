"""A small model of each kind, and what docs/flax.md says of a step."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

PAGE = pathlib.Path(__file__).parents[2] / "docs/flax.md"
TOKENS = jnp.arange(16)
TARGETS = (TOKENS * 5 + 3) % 16


def temporary(v):
    """Temporary bytes per parameter in the table on the page: of Flax's optimizer, and of ours."""
    row = re.search(
        rf"^\|[^|]*`{v.name}`[^|]*\|([^|]*)\|([^|]*)\|$", PAGE.read_text(), re.MULTILINE
    )
    return float(row[1]), float(row[2])


def cross_entropy(logits):
    """The loss of both models."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, TARGETS).mean()


def normal_like(params, seed=1):
    """Normal numbers for gradients, where the parameters are."""
    rng = np.random.default_rng(seed)

    def like(p):
        x = np.asarray(rng.normal(size=p.shape), p.dtype)
        return jax.device_put(x, p.sharding) if len(p.sharding.device_set) > 1 else jnp.asarray(x)

    return jax.tree.map(like, params)


# --------------------------------------------------------------------------------------------- NNX


class Model(nnx.Module):
    """Two matrices that are stored in 8 bits, and a vector that is not.

    `partition` is `nnx.with_partitioning` for a model with annotations.
    """

    def __init__(self, partition=lambda init, axes: init):
        rngs, normal, zeros = nnx.Rngs(0), nnx.initializers.normal(0.1), nnx.initializers.zeros
        columns, rows, bias = (
            partition(init, axes)
            for init, axes in [(normal, (None, "x")), (normal, ("x", None)), (zeros, ("x",))]
        )
        self.embed = nnx.Embed(16, 1024, embedding_init=columns, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(1024, 16, kernel_init=rows, bias_init=bias, rngs=rngs)])

    def __call__(self, tokens):
        return self.layers[0](nnx.relu(self.embed(tokens)))


def train(model, optimizer):
    """A training step as one writes it with NNX; returns the loss before it."""
    loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(TOKENS)))(model)
    optimizer.update(model, grads)
    return loss


def update(model, optimizer, grads):
    """A step with gradients that are given."""
    optimizer.update(model, grads)


def gradients(model, wrt=nnx.Param, seed=1):
    """Gradients of a model, where its parameters are."""
    return normal_like(nnx.state(model, wrt), seed)


def params_of(model):
    """The parameters, as bare arrays."""
    return nnx.as_pure(nnx.state(model, nnx.Param))


def state_of(optimizer):
    """The state of an `nnx.Optimizer`, as bare arrays."""
    return nnx.as_pure(optimizer.opt_state)


# ------------------------------------------------------------------------------------------- Linen


class Linen(nn.Module):
    """The same model; its matrix products are in 8-bit floating point if that is asked for."""

    fp8: bool = False

    @nn.compact
    def __call__(self, tokens):
        dot = {"dot_general_cls": nn.Fp8DirectDotGeneralOp} if self.fp8 else {}
        return nn.Dense(16, **dot)(nn.relu(nn.Embed(16, 1024)(tokens)))


def train_state(kind, tx, fp8=False):
    """A train state of that kind. With fp8, its parameters are a collection among others."""
    model = Linen(fp8)
    variables = model.init(jax.random.key(0), TOKENS)
    params = variables if fp8 else variables["params"]
    return kind.create(apply_fn=model.apply, params=params, tx=tx)


def linen_grads(state):
    """Loss and gradients of a train state."""

    def loss_of(params):
        variables = params if "params" in params else {"params": params}
        return cross_entropy(state.apply_fn(variables, TOKENS))

    return jax.value_and_grad(loss_of)(state.params)


def linen_train(state):
    """A training step as one writes it with Linen: the next state, and the loss before it."""
    loss, grads = linen_grads(state)
    return state.apply_gradients(grads=grads), loss


# -------------------------------------------------------------------------------------- comparisons


def forms(tree):
    """Shape, dtype and kind of memory of every array."""
    return [(x.shape, x.dtype, x.sharding.memory_kind) for x in jax.tree.leaves(tree)]


def size(tree):
    """Bytes of all arrays, in whichever memory."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def copy(tree):
    """A tree of new arrays in the same places, because donated ones are gone."""
    return jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), tree)


def assert_equal(a, b):
    """Trees of the same bits, in whichever containers."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def assert_at(tree, shardings):
    """Every array is where it should be, kind of memory included."""
    for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(s, x.ndim), (x.sharding, s)
        assert x.sharding.memory_kind == s.memory_kind
