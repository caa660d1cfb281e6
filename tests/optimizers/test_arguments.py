"""Every argument that is accepted does something, and the signatures say the same everywhere."""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lamblion
from optax_lamblion import StateOptions
from tests.optimizers import problem
from tests.variants import ALIASES, VARIANTS, every

LION_DEFAULTS = dict(learning_rate=1e-4, b1=0.9, b2=0.99, weight_decay=0.0)
LAMB_DEFAULTS = dict(learning_rate=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
DEFAULTS = {"lion": LION_DEFAULTS, "lamb": LAMB_DEFAULTS}
DEFAULTS["adamw"] = {**LAMB_DEFAULTS, "weight_decay": 1e-2}
families = pytest.mark.parametrize("family", DEFAULTS)


@dataclasses.dataclass(frozen=True)
class Change:
    """Another value of one argument, and where it shows: in the updates or in what is stored."""

    argument: str
    value: Any
    shows_in: str
    bits: tuple[int, ...] = (8, 32)
    label: str = ""


def option(field, value, label="", bits=(8,)):
    return Change("options", StateOptions(**{field: value}), "state", bits, f"{field}{label}")


CHANGES = (
    Change("learning_rate", 0.5, "updates"),
    Change("b1", 0.3, "updates"),
    Change("b2", 0.7, "updates"),
    Change("eps", 0.1, "updates"),
    Change("weight_decay", 0.3, "updates"),
    Change(
        "weight_decay",
        lambda count: 0.1 * jnp.exp2(-count.astype(float)),
        "updates",
        label="schedule",
    ),
    Change("mask", {"rows": False, "small": True}, "updates", label="tree"),
    Change("mask", lambda p: jax.tree.map(lambda x: x.ndim < 2, p), "updates", label="function"),
    Change("bias_correction", False, "updates"),
    Change("amsgrad", True, "updates"),
    Change("adam_w_mode", False, "updates"),
    Change("max_unorm", 0.1, "updates"),
    Change("trust_clip", (0.0, 0.5), "updates"),
    Change("min_8bit_size", 33, "state", (8,)),
    Change("block_wise", False, "state", (8,)),
    Change("percentile_clipping", 5, "updates"),
    option("block_size", 128),
    option("codec", "dynamic", "-dynamic"),
    option("codec", "linear", "-linear"),
    option("min_8bit_size", 33),
    option("keep_32bit", lambda path: path == "rows", "-predicate"),
    option("keep_32bit", {"rows": True, "small": False}, "-tree"),
    option("keep_32bit", True, "-prefix"),
)


def observe(v, **arguments):
    """Updates and state of a few steps whose gradients grow, so that clipping has work to do."""
    tx = v(**arguments)
    p = problem.params(only=problem.FEW)
    state = tx.init(p)
    seen = []
    for step in (1, 2, 3):
        g = jax.tree.map(lambda x, s=step: x * s**2, problem.grads(step, only=problem.FEW))
        updates, state = tx.update(g, state, p)
        seen.append(updates)
    return {"updates": seen, "state": (state.mu, state.mu_absmax)}


@functools.cache
def baseline(v):
    """What the variant does with its own arguments."""
    return observe(v)


def differ(a, b):
    """Whether any array of two trees differs in dtype, shape or content."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) != len(b) or any(
        x.dtype != y.dtype or not np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


def cases():
    for v in VARIANTS:
        accepted = inspect.signature(v.factory).parameters
        for change in CHANGES:
            if change.argument in accepted and v.bits in change.bits:
                label = "-".join(filter(None, (v.name, change.argument, change.label)))
                yield pytest.param(v, change, id=label)


@pytest.mark.parametrize(("v", "change"), list(cases()))
def test_argument_changes_the_result(v, change):
    after = observe(v, **{change.argument: change.value})
    assert differ(baseline(v)[change.shows_in], after[change.shows_in])


def test_every_argument_is_in_the_table():
    tested = {change.argument for change in CHANGES}
    for v in VARIANTS:
        # Where state is does not change a step: see `test_paged_state`.
        assert set(inspect.signature(v.factory).parameters) <= tested | {"paged"}, v.name


def test_every_option_is_in_the_table():
    tested = {c.label.split("-")[0] for c in CHANGES if c.argument == "options"}
    fields = {field.name for field in dataclasses.fields(StateOptions)}
    # On a CPU, naming the implementation changes nothing, see below. Nor does it change a step
    # where its state is, see `test_paged_state`. Stacks have tests of their own, and so do meshes,
    # the count of skipped elements, and parameters of 16 bits.
    paging = {"page_min_size", "page_bytes", "pages_in_flight", "device_budget"}
    others = {"implementation", "stacked", "norm_axes", "count_skipped"}
    assert fields == tested | others | {"param_rounding", "update_dtype"} | paging


@every()
def test_naming_the_implementation_that_none_picks_changes_nothing(v):
    named = observe(v, options=StateOptions(implementation="xla"))
    assert not differ(named, baseline(v))


@every(lambda v: v.bits == 32)
def test_options_of_8_bits_are_accepted_in_32(v):
    """So that variants can be exchanged; there is nothing for them to act on."""
    options = StateOptions(block_size=64, codec="linear", min_8bit_size=0)
    assert not differ(observe(v, min_8bit_size=0, options=options), baseline(v))
    assert not differ(observe(v, block_wise=False), baseline(v))


# ------------------------------------------------------------------------------- signatures


def parameters(name):
    return inspect.signature(getattr(optax_lamblion, name)).parameters


@families
@pytest.mark.parametrize(
    ("variant", "fixed"),
    [
        ("{}8bit", {"bits"}),
        ("{}32bit", {"bits"}),
        ("paged_{}", {"paged"}),
        ("paged_{}8bit", {"bits", "paged"}),
        ("paged_{}32bit", {"bits", "paged"}),
    ],
)
def test_variants_have_their_parent_s_signature(family, variant, fixed):
    parent = {name: p for name, p in parameters(family).items() if name not in fixed}
    child = dict(parameters(variant.format(family)))
    assert list(child) == list(parent)
    assert child == parent  # names, kinds, defaults and annotations


BLOCKS = {"lion": "scale_by_lion", "lamb": "scale_by_lamb", "adamw": "scale_by_adam"}


@families
def test_building_blocks_have_their_parent_s_signature(family):
    fixed = {"learning_rate"}
    if family != "lamb":
        fixed |= {"weight_decay", "mask", "adam_w_mode"}  # apart from the direction
    parent = {name: p for name, p in parameters(family).items() if name not in fixed}
    assert dict(parameters(BLOCKS[family])) == parent


@families
def test_defaults_are_the_documented_ones(family):
    defaults, found = DEFAULTS[family], {n: p.default for n, p in parameters(family).items()}
    assert {name: found[name] for name in defaults} == defaults
    off = dict(mask=None, bits=None, min_8bit_size=None, block_wise=True, percentile_clipping=None)
    off |= dict(paged=False, options=None)
    if family != "lion":
        off |= dict(bias_correction=True, amsgrad=False, adam_w_mode=True)
    if family == "lamb":
        off |= dict(max_unorm=None, trust_clip=None)
    assert found == {**defaults, **off}


@families
def test_only_optax_s_arguments_are_positional(family):
    positional = [
        name
        for name, p in parameters(family).items()
        if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == [*DEFAULTS[family], "mask"]


def test_state_options_have_the_documented_defaults():
    assert dataclasses.asdict(StateOptions()) == dict(
        block_size=256,
        codec="power",
        min_8bit_size=4096,
        keep_32bit=None,
        stacked=None,
        norm_axes=None,
        implementation=None,
        count_skipped=False,
        param_rounding="nearest",
        update_dtype=None,
        page_min_size=100_000,
        page_bytes=2**25,
        pages_in_flight=2,
        device_budget=None,
    )


@pytest.mark.parametrize(
    "explicit",
    [
        dict(min_8bit_size=4096),
        dict(options=StateOptions()),
        dict(percentile_clipping=None),
        dict(percentile_clipping=100),
        dict(block_wise=True),
    ],
    ids=lambda d: next(iter(d)),
)
@every(lambda v: v.bits == 8)
def test_none_means_what_is_documented(v, explicit):
    assert not differ(observe(v, **explicit), baseline(v))


@every(lambda v: not v.paged)
def test_bits_select_the_variant(v):
    parent = dataclasses.replace(v, name=v.family)
    assert not differ(observe(parent, bits=v.bits), baseline(v))


def settings(tx):
    """What a factory passed on, in words."""
    (c,) = tx.update.args
    return {field.name: getattr(c, field.name) for field in dataclasses.fields(c)}


@pytest.mark.parametrize("alias", ALIASES)
def test_names_without_bits_are_those_in_32(alias):
    """All that tests show of the one is true of the other."""
    rest = dict(weight_decay=0.5, min_8bit_size=7, percentile_clipping=5)
    a, b = (settings(getattr(optax_lamblion, x)(3e-3, **rest)) for x in (alias, ALIASES[alias]))
    assert (a.pop("bits"), b.pop("bits")) == (None, 32)
    assert a == b


@families
def test_building_blocks_give_the_direction(family):
    """The step is minus the learning rate times the direction."""
    (v,) = (v for v in VARIANTS if v.name == f"{family}8bit")
    decay = dict(weight_decay=v.kwargs["weight_decay"]) if v.has_ratio else {}
    block = getattr(optax_lamblion, BLOCKS[family])(bits=8, **decay)
    whole = v(weight_decay=decay.get("weight_decay", 0.0))
    p, g = problem.params(), problem.grads()
    direction, state = block.update(g, block.init(p), p)
    updates, expected = whole.update(g, whole.init(p), p)
    problem.assert_equal(state, expected)
    step = jax.tree.map(lambda x: -v.kwargs["learning_rate"] * x, direction)
    problem.assert_near(step, updates, rtol=1e-6)
