"""Trees that do not fit: parameters, gradients, masks and states of another optimizer.

Every message names the leaf, or what `update` was given, and says what to do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import (
    StateOptions,
    apply_fused,
    lamb,
    lamb8bit,
    lamb32bit,
    lion,
    lion8bit,
    lion32bit,
)
from optax_lamblion._state.layout import Layout
from tests.optimizers.test_errors import case, check

P = {"layer": {"w": jnp.ones((16, 256)), "b": jnp.ones(5)}}
"""Parameters and gradients of the tests."""


def tree(w=None, b=None):
    """`P` with another array in place of one of its own."""
    inner = P["layer"]
    return {"layer": {"w": inner["w"] if w is None else w, "b": inner["b"] if b is None else b}}


def step(tx, state, grads=P, params=P):
    """One update, from a state or from that of another optimizer."""
    state = state.init(P) if isinstance(state, optax.GradientTransformation) else state
    return tx.update(grads, state, params)


def blocks(size, factory=lion8bit):
    return factory(options=StateOptions(block_size=size))


def changed(tx, **fields):
    """One update from a fresh state of which some fields are others."""
    return step(tx, tx.init(P)._replace(**fields))


MAKE_NEW = "`tx.init(params)`"
CONVERT = "`convert_state(state, params, tx)`"
LEAVE_OUT = ("floating-point", "`optax.masked`", "`optax.partition`")

LEAVES = [
    case(
        "integer parameter",
        lambda: lion().init(tree(b=jnp.arange(5))),
        TypeError, "'layer/b'", "int32", *LEAVE_OUT,
    ),
    case(
        "complex parameter",
        lambda: lamb8bit().init(tree(w=jnp.ones(3, jnp.complex64))),
        TypeError, "'layer/w'", "complex64", "split_real_and_imaginary(tx)", *LEAVE_OUT,
    ),
    case(
        "parameter in 8 bits",
        lambda: lion8bit().init(tree(w=jnp.ones((16, 256), jnp.float8_e4m3fn))),
        TypeError, "'layer/w'", "float8_e4m3fn", "bfloat16", "`optax.masked`",
    ),
    case(
        "function as parameter",
        lambda: lion8bit().init(tree(b=jax.nn.relu)),
        TypeError, "'layer/b'", "`eqx.filter(model, eqx.is_inexact_array)`",
    ),
    case(
        "Python number as gradient",
        lambda: step(lion(), lion(), grads=tree(b=1.0)),
        TypeError, "Gradient 'layer/b'", "float", "jnp.asarray",
    ),
    case(
        "complex gradient",
        lambda: step(lion(), lion(), grads=tree(b=jnp.ones(5, jnp.complex64))),
        TypeError, "Gradient 'layer/b'", "complex64", "split_real_and_imaginary(tx)",
    ),
    case(
        "bool parameter",
        lambda: lion8bit().init(tree(b=jnp.ones(5, bool))),
        TypeError, "'layer/b'", "bool", *LEAVE_OUT,
    ),
    case(
        "Python number as parameter",
        lambda: lion().init(tree(b=1.0)),
        TypeError, "'layer/b'", "float", "array",
    ),
    case(
        "integer gradient",
        lambda: step(lion(), lion(), grads=tree(b=jnp.arange(5))),
        TypeError, "'layer/b'", "int32", *LEAVE_OUT,
    ),
    case(
        "gradient of another shape",
        lambda: step(lion8bit(), lion8bit(), tree(w=jnp.ones((32, 256))), params=None),
        ValueError, "'layer/w'", "(16, 256)", "(32, 256)", MAKE_NEW,
    ),
    case(
        "parameter of another shape",
        lambda: step(lamb(), lamb(), params=tree(b=jnp.ones(6))),
        ValueError, "'layer/b'", "(6,)", "(5,)",
    ),
    case(
        "parameter that would broadcast",
        lambda: step(lion(weight_decay=0.1), lion(), params=tree(b=jnp.ones(()))),
        ValueError, "'layer/b'", "()", "(5,)",
    ),
    case(
        "parameters of another structure",
        lambda: step(lamb(), lamb(), params={"layer": {"w": P["layer"]["w"]}}),
        ValueError, "params", "structure",
    ),
    case(
        "state of another structure",
        lambda: step(lion(), lion().init({"layer": {"w": P["layer"]["w"]}})),
        ValueError, "state", "structure", MAKE_NEW,
    ),
]  # fmt: skip

CALL = "`tx.update(grads, state, params)`"
MISSING_PARAMS = [
    case(name, lambda tx=tx: tx.update(P, tx.init(P)), ValueError, "`params`", why, CALL)
    for name, tx, why in [
        ("lion with decay", lion(weight_decay=0.1), "weight decay"),
        ("lion with scheduled decay", lion8bit(weight_decay=lambda count: 0.0), "weight decay"),
        ("lion with a traced decay", lion(weight_decay=jnp.float32(0.0)), "weight decay"),
        ("lamb", lamb32bit(), "trust ratio"),
    ]
]

MASKS = [
    case(
        f"{argument} {name}",
        lambda value=value, build=build: step(build(value), build(value)),
        (TypeError, ValueError), f"`{argument}`", "bools",
    )
    for argument, build in [
        ("mask", lambda m: lion8bit(weight_decay=0.1, mask=m)),
        ("keep_32bit", lambda m: lion8bit(options=StateOptions(keep_32bit=m))),
    ]
    for name, value in [
        ("of another structure", {"layer": {"w": True}}),
        ("deeper than the parameters", {"layer": {"w": {"kernel": True}, "b": False}}),
        ("of names", {"layer": {"w": "yes", "b": "no"}}),
        ("of numbers", {"layer": {"w": 1.5, "b": 0.0}}),
        # Optax's sixth positional argument of lamb is weight decay, ours is the mask.
        ("that is a number", 0.1),
    ]
]  # fmt: skip

OTHER_STATES = [
    case(
        "block size 128 in 256",
        lambda: step(lion8bit(), blocks(128)),
        ValueError, "mu", "'layer/w'", "block size 128", "uses 256", "StateOptions(block_size=128)",
    ),
    case(
        "block size 256 in 64",
        lambda: step(blocks(64, lamb8bit), lamb8bit()),
        ValueError, "mu", "'layer/w'", "block size 256", "uses 64", "StateOptions(block_size=256)",
    ),
    case(
        "tensor-wise in 256",
        lambda: step(lion8bit(), lion8bit(block_wise=False)),
        ValueError, "mu", "'layer/w'", "uses 256", "`block_wise=False", CONVERT,
    ),
    case(
        "256 in tensor-wise",
        lambda: step(lion8bit(block_wise=False), lion8bit()),
        ValueError, "mu", "'layer/w'", "block size 256", "StateOptions(block_size=256)",
    ),
    case("8-bit in 32-bit", lambda: step(lion32bit(), lion8bit()), ValueError, "8", "`bits=8`"),
    case("32-bit in 8-bit", lambda: step(lion8bit(), lion32bit()), ValueError, "8", CONVERT),
    case("8-bit in 32-bit lamb", lambda: step(lamb(), lamb8bit()), ValueError, "8", "`bits=8`"),
    case("32-bit in 8-bit lamb", lambda: step(lamb8bit(), lamb()), ValueError, "8", CONVERT),
    case(
        "the power codec's in dynamic",
        lambda: step(lion8bit(options=StateOptions(codec="dynamic")), lion8bit()),
        ValueError, "mu['layer/w']", 'codec "power"', 'uses "dynamic"', CONVERT,
        '`options=StateOptions(block_size=256)`',
    ),
    case(
        "the dynamic codec's in power",
        lambda: step(lamb8bit(), lamb8bit(options=StateOptions(codec="dynamic", block_size=64))),
        ValueError, "mu['layer/w']", 'codec "dynamic"', 'uses "power"',
        '`options=StateOptions(block_size=64, codec="dynamic")`', CONVERT,
    ),
    case(
        "one of a format to come",
        lambda: changed(lion8bit(), layout={"power_256_v3": jnp.int32(0)}),
        ValueError, "format 3", "reads format 2", "newer",
    ),
    case(
        "one without a layout",
        lambda: changed(lion8bit(), layout=None),
        ValueError, "`layout`", "'power_256_v2'", MAKE_NEW,
    ),
    case(
        "scales of another shape",
        lambda: changed(lion8bit(), mu_absmax=tree(b=jnp.zeros(1))),
        ValueError, "mu['layer/w']", "scales of shape (16, 256)", "need (16, 1)", MAKE_NEW,
    ),
    case(
        "numbers with scales",
        lambda: changed(lion8bit(), mu_absmax=P),
        ValueError, "mu['layer/b']", "scales of shape (5,)", "(1,)", MAKE_NEW,
    ),
    case(
        "gradients and state swapped",
        lambda: lion().update(lion().init(P), P, P),
        TypeError, "first argument", "tx.update(grads, state, params)",
    ),
    case(
        "gradients and state swapped, fused",
        lambda: apply_fused(lion(), P, lion().init(P), P),
        TypeError, "third argument", "`apply_fused(tx, params, grads, state)`",
    ),
    case(
        "gradients and state swapped, of a chain",
        lambda: apply_fused(optax.chain(lion()), P, optax.chain(lion()).init(P), P),
        TypeError, "third argument", "`apply_fused(tx, params, grads, state)`",
    ),
    case(
        "parameters and gradients are one leaf",
        lambda: apply_fused(lion(), P["layer"]["w"], lion().init(P["layer"]["w"]), P["layer"]["w"]),
        TypeError, "third argument",
    ),
    case(
        "arrays by position from another codec",
        lambda: changed(lion8bit(), layout={"power_256_v2": Layout("linear", 256).number}),
        ValueError, "'power_256_v2'", "'linear_256_v2'",
        '`options=StateOptions(block_size=256, codec="linear")`',
    ),
    case("lamb's in lion", lambda: step(lion(), lamb()), TypeError, "`LionState`", "LambState"),
    case(
        "a chain's",
        lambda: step(lion(), optax.chain(lion())),
        TypeError, "`LionState`", MAKE_NEW, "tuple",
    ),
    case(
        "parameters in the state's place",
        lambda: lion().update(P, P, lion().init(P)),
        TypeError, "`LionState`", MAKE_NEW, "dict",
    ),
    case(
        "none with amsgrad",
        lambda: step(lamb8bit(amsgrad=True), lamb8bit()),
        ValueError, "`nu_max`", MAKE_NEW,
    ),
    case(
        "amsgrad's without it",
        lambda: step(lamb8bit(), lamb8bit(amsgrad=True)),
        ValueError, "`nu_max`", "`amsgrad=True`",
    ),
    case(
        "none with clipping",
        lambda: step(lion(percentile_clipping=5), lion()),
        ValueError, "`gnorm_history`", "`percentile_clipping`", MAKE_NEW,
    ),
    case(
        "clipping's without it",
        lambda: step(lion(), lion(percentile_clipping=5)),
        ValueError, "`gnorm_history`", "`percentile_clipping`",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "fragments"), LEAVES)
def test_leaves_that_do_not_fit_are_named(call, error, fragments):
    check(call, error, fragments)


@pytest.mark.parametrize(("call", "error", "fragments"), MISSING_PARAMS)
def test_missing_params_are_asked_for_with_the_reason(call, error, fragments):
    check(call, error, fragments)


def test_lion_without_decay_needs_no_params():
    for factory in (lion, lion8bit, lion32bit):
        tx = factory(weight_decay=0.0)
        tx.update(P, tx.init(P))


@pytest.mark.parametrize(("call", "error", "fragments"), MASKS)
def test_trees_of_bools_must_be_that(call, error, fragments):
    check(call, error, fragments)


KINDS = {"python": bool, "numpy": np.bool_, "array": jnp.asarray}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_bools_may_be_of_any_kind(kind):
    def bools(w, b):
        return {"layer": {"w": kind(w), "b": kind(b)}}

    decayed = lion8bit(weight_decay=0.1, mask=bools(True, False))
    updates, _ = step(decayed, decayed)
    assert jnp.all(updates["layer"]["w"] < updates["layer"]["b"][0])
    kept = lion8bit(options=StateOptions(keep_32bit=bools(True, False))).init(P)
    assert kept.mu["layer"]["w"].dtype == np.float32


@pytest.mark.parametrize(("call", "error", "fragments"), OTHER_STATES)
def test_state_of_another_optimizer_is_refused(call, error, fragments):
    check(call, error, fragments)
