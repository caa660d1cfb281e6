"""Wrong arguments: the message says what was given, what is needed, and what to type next."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import (
    StateOptions,
    adamw,
    clip_by_percentile,
    lamb,
    lamb8bit,
    lion,
    lion8bit,
    lion32bit,
    scale_by_lamb,
    scale_by_lion,
)

VALUE, TYPE = ValueError, TypeError
NAN = float("nan")


def case(name, call, error, *fragments):
    return pytest.param(call, error, fragments, id=name)


def under_inject_hyperparams(factory, **arguments):
    """Builds as Optax does it, with numbers as arrays."""
    return optax.inject_hyperparams(factory)(1e-3, **arguments).init(jnp.ones(3))


NUMBERS = [
    case(f"{argument}={value!r}", lambda a=argument, v=value: lamb(**{a: v}), error, *fragments)
    for argument, value, error, *fragments in [
        ("b1", 1, VALUE, "`b1`", "below 1", "got 1"),
        ("b1", -0.1, VALUE, "`b1`", "at least 0", "got -0.1"),
        ("b1", NAN, VALUE, "`b1`", "got nan"),
        ("b1", None, TYPE, "`b1`", "number or a schedule", "None"),
        ("b1", (0.9, 0.99), TYPE, "`b1`", "number or a schedule", "(0.9, 0.99)"),
        ("b2", 1.0, VALUE, "`b2`", "below 1", "got 1.0"),
        ("b2", "0.9", TYPE, "`b2`", "number or a schedule", "'0.9'"),
        ("eps", -1e-8, VALUE, "`eps`", "not be negative", "-1e-08"),
        ("eps", True, TYPE, "`eps`", "number or a schedule", "True"),
        ("weight_decay", -0.1, VALUE, "`weight_decay`", "not be negative", "-0.1"),
        ("weight_decay", None, TYPE, "`weight_decay`", "number or a schedule", "None"),
        ("weight_decay", jnp.bfloat16, TYPE, "`weight_decay`", "number or a schedule"),
        ("learning_rate", None, TYPE, "`learning_rate`", "number or a schedule", "None"),
        ("learning_rate", NAN, VALUE, "`learning_rate`", "finite", "nan"),
        ("eps", NAN, VALUE, "`eps`", "finite", "nan"),
        ("weight_decay", float("inf"), VALUE, "`weight_decay`", "finite", "inf"),
        ("weight_decay", 1j, TYPE, "`weight_decay`", "number or a schedule", "1j"),
        ("weight_decay", jnp.ones(1), TYPE, "`weight_decay`", "one real number", "(1,)"),
        ("learning_rate", jnp.complex64(1), TYPE, "`learning_rate`", "one real", "complex64"),
        ("mask", jnp.array(True), TYPE, "`mask`", '`static_args=("mask",)`'),
        ("learning_rate", "1e-3", TYPE, "`learning_rate`", "number or a schedule", "'1e-3'"),
        ("max_unorm", -1.0, VALUE, "`max_unorm`", "-1.0"),
        ("max_unorm", True, TYPE, "`max_unorm`", "number", "True"),
        ("trust_clip", 3, TYPE, "`trust_clip`", "`(0.1, 10.0)`", "got 3"),
        ("trust_clip", (1,), TYPE, "`trust_clip`", "`(0.1, 10.0)`", "got (1,)"),
        ("trust_clip", (2, 1), VALUE, "`trust_clip`", "low <= high", "(2, 1)"),
        ("trust_clip", (-1, 1), VALUE, "`trust_clip`", "0 <= low", "(-1, 1)"),
        ("trust_clip", (NAN, 1), VALUE, "`trust_clip`", "low <= high", "nan"),
        ("trust_clip", (None, 1), TYPE, "`trust_clip`", "`(0.1, 10.0)`", "None"),
        ("trust_clip", ("a", "b"), TYPE, "`trust_clip`", "`(0.1, 10.0)`", "'a'"),
        ("trust_clip", (True, 2), TYPE, "`trust_clip`", "`(0.1, 10.0)`", "True"),
        ("bias_correction", 1, TYPE, "`bias_correction`", "True or False", "got 1"),
        ("amsgrad", None, TYPE, "`amsgrad`", "True or False", "got None"),
        ("adam_w_mode", "no", TYPE, "`adam_w_mode`", "True or False", "'no'"),
        ("block_wise", 0, TYPE, "`block_wise`", "True or False", "got 0"),
        ("percentile_clipping", -1, VALUE, "`percentile_clipping`", "0 to 100", "got -1"),
        ("percentile_clipping", 101, VALUE, "`percentile_clipping`", "0 to 100", "None"),
        ("percentile_clipping", True, TYPE, "`percentile_clipping`", "int", "True"),
        ("percentile_clipping", 0.05, TYPE, "`percentile_clipping`", "pass 5", "0.05"),
        ("bits", 4, VALUE, "`bits`", "8 or 32", "got 4"),
        ("bits", 8.0, TYPE, "`bits`", "8 or 32", "Python int", "float"),
        ("bits", "8", TYPE, "`bits`", "8 or 32", "Python int", "str"),
        ("bits", True, TYPE, "`bits`", "8 or 32", "bool"),
        ("min_8bit_size", -1, VALUE, "`min_8bit_size`", "0 or more", "got -1"),
        ("min_8bit_size", 4096.0, TYPE, "`min_8bit_size`", "Python int", "float"),
        ("min_8bit_size", True, TYPE, "`min_8bit_size`", "Python int", "bool"),
        ("options", {"block_size": 128}, TYPE, "`options`", "dict", "StateOptions(block_size"),
        ("options", StateOptions, TYPE, "`options`", "`StateOptions`", "StateOptions(block_size"),
    ]
]

COMBINATIONS = [
    case(
        "cap and clipped ratio",
        lambda: lamb(max_unorm=1.0, trust_clip=(0, 10)),
        VALUE, "`max_unorm`", "`trust_clip`", "Pass one of them",
    ),
    case(
        "tensor-wise and a block size",
        lambda: lion8bit(block_wise=False, options=StateOptions(block_size=128)),
        VALUE, "`block_wise=False`", "`block_size=128`", "Pass one of them",
    ),
    case(
        "bits made an array",
        lambda: under_inject_hyperparams(lion, bits=8),
        TYPE, "`bits`", "Python int", "`lion8bit`", '`static_args=("bits",)`',
    ),
    case(
        "min_8bit_size made an array",
        lambda: under_inject_hyperparams(lion8bit, min_8bit_size=64),
        TYPE, "`min_8bit_size`", '`static_args=("min_8bit_size",)`', "StateOptions(min_8bit_size",
    ),
    case(
        "Optax's fourth argument of lion, mu_dtype",
        lambda: lion(1e-3, 0.9, 0.99, jnp.float32),
        TYPE, "`weight_decay`", "number or a schedule",
    ),
    case("an option by position", lambda: StateOptions("power"), VALUE, "`block_size`", "'power'"),
    case("no learning rate", lambda: lion(None), TYPE, "`learning_rate`", "scale_by_lion"),
    case("no learning rate in lamb", lambda: lamb8bit(None), TYPE, "scale_by_lamb"),
    case("b1 of a building block", lambda: scale_by_lion(b1=2.0), VALUE, "`b1`", "2.0"),
    case("eps of a building block", lambda: scale_by_lamb(eps=-1.0), VALUE, "`eps`", "-1.0"),
]  # fmt: skip

PERCENTILES = [
    case("negative", lambda: clip_by_percentile(-1), VALUE, "`percentile`", "got -1"),
    case("above 100", lambda: clip_by_percentile(101), VALUE, "`percentile`", "got 101"),
    case("a fraction", lambda: clip_by_percentile(0.05), TYPE, "`percentile`", "pass 5", "0.05"),
    case("a bool", lambda: clip_by_percentile(True), TYPE, "`percentile`", "True"),
    case("None", lambda: clip_by_percentile(None), TYPE, "`percentile`", "None"),
    case(
        "unknown scope",
        lambda: clip_by_percentile(scope="leaf"),
        VALUE, "`scope`", '"tensor" or "global"', "'leaf'",
    ),
]  # fmt: skip

OPTIONS = [
    case(f"{field}={value!r}", lambda f=field, v=value: StateOptions(**{f: v}), error, *fragments)
    for field, value, error, *fragments in [
        ("block_size", 0, VALUE, "`block_size`", "power of two from 32 to 4096", "got 0"),
        ("block_size", 16, VALUE, "`block_size`", "from 32", "got 16"),
        ("block_size", 100, VALUE, "`block_size`", "power of two", "got 100"),
        ("block_size", 8192, VALUE, "`block_size`", "to 4096", "got 8192"),
        ("block_size", None, VALUE, "`block_size`", "`block_wise=False`"),
        ("block_size", "256", (TYPE, VALUE), "`block_size`", "power of two", "'256'"),
        ("block_size", 256.0, (TYPE, VALUE), "`block_size`", "256.0"),
        ("block_size", True, (TYPE, VALUE), "`block_size`", "True"),
        ("codec", "log", VALUE, "'log'", '"power"', '"dynamic"', '"linear"'),
        ("codec", None, VALUE, "None", '"power"'),
        ("min_8bit_size", None, TYPE, "`min_8bit_size`", "NoneType"),
        ("min_8bit_size", -5, VALUE, "`min_8bit_size`", "0 or more", "-5"),
        ("implementation", "pallas", VALUE, "`implementation='pallas'`", "None", '"xla"'),
        ("implementation", 1, VALUE, "`implementation=1`", '"xla"'),
    ]
]  # fmt: skip


def check(call, error, fragments):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    # Ours, not a subclass that JAX raised further down.
    assert type(caught.value) in (VALUE, TYPE), message
    for fragment in fragments:
        assert fragment in message, message
    assert message.rstrip().endswith("."), message


@pytest.mark.parametrize(("call", "error", "fragments"), NUMBERS + COMBINATIONS)
def test_wrong_arguments_raise_at_construction(call, error, fragments):
    check(call, error, fragments)


SCHEDULES = [
    case(f"{a} of {name}", lambda a=a, v=value: step_at(a, v), TYPE, f"`{a}`", what)
    for a in ("learning_rate", "b1", "eps", "weight_decay", "max_unorm")
    for name, value, what in [
        ("one axis", jnp.ones(1), "shape (1,)"),
        ("complex numbers", jnp.complex64(1j), "complex64"),
        ("a Python complex number", 1j, "complex"),
        ("nothing", None, "NoneType"),
    ]
]  # fmt: skip


def step_at(argument, value):
    """A step with a schedule that returns this."""
    tx = lamb(**{argument: lambda count: value})
    return tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))


@pytest.mark.parametrize(("call", "error", "fragments"), SCHEDULES)
def test_wrong_numbers_of_schedules_raise_in_update(call, error, fragments):
    check(call, error, fragments)


NAMES = [
    case("lr", lambda: lion(lr=1e-3), TYPE, "`lion` has no argument `lr`", "`learning_rate`"),
    case("betas", lambda: lamb8bit(betas=(0.9, 0.99)), TYPE, "`lamb8bit`", "`b1` and `b2`"),
    case("optim_bits", lambda: lion(optim_bits=8), TYPE, "Here it is `bits`"),
    case("is_paged", lambda: lion8bit(is_paged=True), TYPE, "Here it is `paged`"),
    case("eps of Lion", lambda: lion(eps=1e-8), TYPE, "no argument `eps`", "`weight_decay`"),
    case("a typing error", lambda: lion(wieght_decay=0.1), TYPE, "Here it is `weight_decay`"),
    case("codec", lambda: lion8bit(codec="linear"), TYPE, "`options=StateOptions(codec=...)`"),
    case("bits twice", lambda: lion8bit(bits=32), TYPE, "no argument `bits`"),
]


@pytest.mark.parametrize(("call", "error", "fragments"), NAMES)
def test_names_of_elsewhere_are_told(call, error, fragments):
    check(call, error, fragments)


def test_a_function_that_optax_calls_is_no_mask():
    def mask(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    for factory in (lion, lamb, adamw):
        with pytest.raises(TypeError, match="static_args"):
            optax.inject_hyperparams(factory)(1e-2, weight_decay=0.1, mask=mask).init(params)
        named = optax.inject_hyperparams(factory, static_args=("mask",))
        tx = named(1e-2, weight_decay=0.1, mask=mask)
        bare = factory(1e-2, weight_decay=0.1, mask=mask)
        ours, _ = tx.update(params, tx.init(params), params)
        expected, _ = bare.update(params, bare.init(params), params)
        # The numbers are float32 under `inject_hyperparams`.
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, expected)


@pytest.mark.parametrize(("call", "error", "fragments"), PERCENTILES)
def test_wrong_percentiles_raise_at_construction(call, error, fragments):
    check(call, error, fragments)


@pytest.mark.parametrize(("call", "error", "fragments"), OPTIONS)
def test_wrong_options_raise_at_construction(call, error, fragments):
    check(call, error, fragments)


def test_numpy_numbers_are_numbers():
    for factory in (lion, lamb):
        factory(np.float32(1e-3), np.float64(0.9), jnp.float32(0.99), weight_decay=np.float16(0.5))


def test_zero_is_a_number():
    lamb(0, 0, 0, eps=0, weight_decay=0, trust_clip=(0, 0), percentile_clipping=0, min_8bit_size=0)
    lion32bit(0.0, 0.0, 0.0, jax.numpy.float32(0.0))
