"""What does not fit is refused by the name of the leaf, and nothing has changed then."""

import copy
import json
import pathlib
import subprocess
import sys

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import (
    StateOptions,
    convert_state,
    lamb8bit,
    lamb32bit,
    lion8bit,
    lion32bit,
    restore_target,
)
from optax_lamblion._state.layout import Layout
from tests.checkpoints import problem
from tests.optimizers.test_errors import check

P = {"layer": {"w": jnp.ones((16, 256)), "b": jnp.ones(5)}}


def raw(tx):
    """A state with something in it, as dicts of NumPy's arrays."""
    state = problem.filled(tx.init(P))
    return jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))


def replaced(tx, path, value):
    """The same with one leaf replaced, or without it."""
    tree = node = raw(tx)
    *folders, name = path.split("/")
    for folder in folders:
        node = node[folder]
    if value is None:
        del node[name]
    else:
        node[name] = value
    return tree


def damaged(name, tx, path, value, *fragments):
    return pytest.param(tx, replaced(tx, path, value), fragments, id=name)


LION = lion8bit()
LAMB = lamb8bit(amsgrad=True, percentile_clipping=5, options=StateOptions(count_skipped=True))
DAMAGED = [
    damaged(
        "another shape", LION, "mu/layer/w", np.ones((8, 256), np.uint8),
        "mu['layer/w']", "(8, 256)", "(16, 256)", "other parameters",
    ),
    damaged(
        "of fewer dimensions", LAMB, "nu/layer/b", np.ones((), np.float32),
        "nu['layer/b']", "()", "(5,)",
    ),
    damaged("a leaf less", LION, "mu/layer/b", None, "'mu/layer/b'", "missing"),
    damaged("no scales", LAMB, "nu/layer/w", None, "'nu/layer/w'", "missing"),
    damaged("no count", LION, "count", None, "no state of Lion, LAMB or AdamW at its top"),
    damaged("no norms of a leaf", LAMB, "gnorm_history/layer/b", None, "'gnorm_history/layer/b'"),
    damaged(
        "a leaf more", LION, "mu/layer/bias", np.ones(5, np.float32),
        "'mu/layer/bias'", "no place",
    ),
    damaged(
        "a leaf more around it", LION, "ema", np.ones(5, np.float32), "'ema'", "no place",
    ),
    damaged(
        "codes in 16 bits", LION, "mu/layer/w", np.ones((16, 256), np.int16),
        "mu['layer/w']", "int16", "uint8 codes or floating point",
    ),
    damaged(
        "scales in 64 bits", LAMB, "nu_max_absmax/layer/w", np.ones((16, 1), np.float64),
        "nu_max['layer/w']", "scales of dtype float64", "float32",
    ),
    damaged(
        "scales of other blocks", LAMB, "mu_absmax/layer/w", np.ones((16, 4), np.float32),
        "mu['layer/w']", "scales of shape (16, 4)", "(16, 1)", "blocks of 256",
    ),
    damaged("a count of floats", LION, "count", np.float32(3), "'count'", "float32", "int32"),
    damaged("many counts", LION, "count", np.ones(2, np.int32), "'count'", "(2,)", "()"),
    damaged(
        "fewer norms", LAMB, "gnorm_history/layer/w", np.ones(50, np.float32),
        "gnorm_history['layer/w']", "(50,)", "(100,)",
    ),
    damaged(
        "norms in 64 bits", LAMB, "gnorm_history/layer/w", np.ones(100, np.float64),
        "gnorm_history['layer/w']", "float64", "float32",
    ),
    damaged(
        "a count of skipped elements in floats", LAMB, "skipped", np.float32(3),
        "'skipped'", "float32", "int32",
    ),
    damaged(
        "counts of skipped elements", LAMB, "skipped", np.ones(2, np.int32), "'skipped'", "(2,)",
    ),
    damaged(
        "a format to come", LION, "layout", {"power_256_v3": np.int32(0)},
        "format 3", "reads format 2", "newer",
    ),
    damaged("a count of many bits", LION, "count", np.float64(3), "'count'", "float64", "int32"),
    damaged(
        "codes cast to numbers", LAMB, "nu/layer/w", np.ones((16, 256), np.float32),
        "nu['layer/w']", "float32", "scales of shape (16, 1)", "codes that were cast",
    ),
    damaged(
        "a format that was", LION, "layout", {"power_256_v1": np.int32(0)},
        "format 1", "reads format 2", "32 bits", "`lion32bit()`", "`tx.init(params)`",
    ),
    damaged(
        "a codec to come", LION, "layout", {"cubic_256_v2": np.int32(0)},
        'codec "cubic"', "newer",
    ),
    damaged(
        "two layouts", LION, "layout", {"power_256_v2": np.int32(0), "power_64_v2": np.int32(0)},
        "`layout`", "one entry", "'power_64_v2'",
    ),
    damaged("no layout", LION, "layout", None, "'mu/layer/w'", "'layout'", "incomplete"),
]  # fmt: skip


@pytest.mark.parametrize(("tx", "tree", "fragments"), DAMAGED)
def test_a_state_that_is_not_whole(tx, tree, fragments, tmp_path):
    problem.save(tmp_path / "saved", tree)
    saved, before = problem.metadata(tmp_path / "saved"), problem.bits(tree)
    for refuse in (
        lambda: restore_target(tx, P, saved),
        lambda: restore_target(tx, P, saved, convert=True),
        lambda: convert_state(tree, P, tx),
        # In another form each leaf is looked at, and not only passed on.
        lambda: convert_state(tree, P, _other_blocks(tx)),
    ):
        check(refuse, ValueError, fragments)
    assert problem.bits(tree) == before


@pytest.mark.parametrize(
    ("tx", "tree", "fragments"),
    [
        damaged(
            "arrays by position, of another codec", LION, "layout",
            {"power_256_v2": np.int32(Layout("dynamic", 256).number)},
            "'power_256_v2'", "'dynamic_256_v2'", 'codec="dynamic"',
        ),
        damaged("a negative count", LAMB, "count", np.int32(-7), "'count'", "-7", "from 0 up"),
    ],
)  # fmt: skip
def test_numbers_that_mean_something_else(tx, tree, fragments):
    check(lambda: convert_state(tree, P, tx), ValueError, fragments)


def _other_blocks(tx):
    options = StateOptions(block_size=64, count_skipped=tx is LAMB)
    if tx is LION:
        return lion8bit(options=options)
    return lamb8bit(amsgrad=True, percentile_clipping=5, options=options)


# -------------------------------------------------------------------------------- other optimizers


def other(name, saved, tx, *fragments):
    return pytest.param(saved, tx, fragments, id=name)


OTHERS = [
    other("lamb's for lion", lamb8bit(), lion8bit(), "'nu/layer/b'", "no place"),
    other("lion's for lamb", lion8bit(), lamb8bit(), "'nu/layer/b'", "missing"),
    other("none with amsgrad", lamb32bit(), lamb32bit(amsgrad=True), "'nu_max/layer/b'", "missing"),
    other("amsgrad's", lamb8bit(amsgrad=True), lamb8bit(), "'nu_max/layer/b'", "no place"),
    other(
        "clipping's", lion8bit(percentile_clipping=5), lion8bit(), "'gnorm_history/layer/b'",
        "no place",
    ),
    other(
        "one's that counts", lion8bit(options=StateOptions(count_skipped=True)), lion8bit(),
        "'skipped'", "no place",
    ),
    other("Adam's", optax.adam(1e-3), lion32bit(), "'0/nu/layer/b'", "no place"),
    other(
        "another one's", optax.sgd(1e-3, momentum=0.9), lion8bit(),
        "no state of Lion, LAMB or AdamW",
    ),
    other("no state", optax.identity(), lion8bit(), "no"),
    other(
        "a part that is no more", optax.chain(optax.ema(0.9), lion8bit()), lion8bit(),
        "'0/count' (and 2 more)", "no place",
    ),
    other("a part that was not", lion8bit(), optax.chain(optax.ema(0.9), lion8bit()), "'0/count'"),
    other(
        "two of them", optax.chain(lion8bit(), lion8bit()), optax.chain(optax.clip(1), lion8bit()),
        "'0/count'", "no place",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("saved", "tx", "fragments"), OTHERS)
def test_the_state_of_another_optimizer(saved, tx, fragments):
    check(lambda: convert_state(saved.init(P), P, tx), ValueError, fragments)


@pytest.mark.parametrize("version", [1, 3])
def test_update_refuses_another_format(version):
    state = lion8bit().init(P)
    state = state._replace(layout={f"power_256_v{version}": jnp.int32(0)})
    wants = [f"format {version}", "reads format 2"]
    check(lambda: lion8bit().update(P, state, P), ValueError, wants)


def test_other_parameters():
    fewer = {"layer": {"w": P["layer"]["w"]}}
    for p, leaf in [(fewer, "'mu/layer/b'"), ({"w": P["layer"]["w"]}, "'mu/w'")]:
        for refuse in (convert_state, lambda state, p, tx: restore_target(tx, p, state)):
            check(lambda p=p, f=refuse: f(lion8bit().init(P), p, lion8bit()), ValueError, [leaf])


def test_two_leaves_of_one_name():
    p = {"a/b": jnp.ones(3), "a": {"b": jnp.ones(3)}}
    call = lambda: convert_state(lion8bit().init(p), p, lion8bit())  # noqa: E731
    check(call, ValueError, ["'mu/a/b'", "slash"])


# ----------------------------------------------------------------------------------- other layouts


def options(factory=lion8bit, **kwargs):
    return factory(options=StateOptions(**kwargs))


CONVERT = ("`convert=True`", "`restore_target`", "`convert_state(state, params, tx)`")
LAYOUTS = [
    other(
        "block size", options(block_size=128), lion8bit(),
        "mu['layer/w']", "block size 128", "uses 256", "`options=StateOptions(block_size=128)`",
    ),
    other(
        "block size of lamb", lamb8bit(), options(lamb8bit, block_size=64),
        "mu['layer/w']", "block size 256", "uses 64", "`options=StateOptions(block_size=256)`",
    ),
    other(
        "tensor-wise", lion8bit(block_wise=False), lion8bit(),
        "mu['layer/w']", "one block per tensor", "uses 256", "`block_wise=False",
    ),
    other(
        "not tensor-wise", lion8bit(), lion8bit(block_wise=False),
        "mu['layer/w']", "block size 256", "uses one block per tensor",
    ),
    other(
        "codec", lion8bit(), options(codec="dynamic"),
        "mu['layer/w']", 'codec "power"', 'uses "dynamic"', "StateOptions(block_size=256)`",
    ),
    other(
        "codec and blocks", options(codec="linear", block_size=64), lion8bit(),
        "mu['layer/w']", 'codec "linear"', '`options=StateOptions(block_size=64, codec="linear")`',
    ),
    other("8 in 32 bits", lion8bit(), lion32bit(), "mu['layer/w']", "is in 8 bits", "`bits=8`"),
    other("32 in 8 bits", lamb32bit(), lamb8bit(), "mu['layer/", "is in 32 bits", "`bits=32`"),
    other(
        "in a chain", optax.chain(optax.clip(1.0), lion8bit()),
        optax.chain(optax.clip(1.0), lion32bit()), "mu['layer/w']", "is in 8 bits", "`bits=8`",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("saved", "tx", "fragments"), LAYOUTS)
def test_another_layout_is_refused_unless_it_is_welcome(saved, tx, fragments, tmp_path):
    state = problem.filled(saved.init(P))
    problem.save(tmp_path / "saved", state)
    says = problem.metadata(tmp_path / "saved")
    check(lambda: restore_target(tx, P, says), ValueError, [*fragments, *CONVERT])
    target = restore_target(tx, P, says, convert=True)
    restored = problem.restore(tmp_path / "saved", target)
    assert problem.bits(restored) == problem.bits(state)
    check(lambda: tx.update(P, restored, P), ValueError, [*fragments, CONVERT[-1]])
    assert problem.bits(restored) == problem.bits(state)
    new = convert_state(restored, P, tx)
    tx.update(P, new, P)
    assert problem.bits(new) == problem.bits(convert_state(state, P, tx))


def test_the_page_shows_the_message():
    page = pathlib.Path(__file__).parents[2] / "docs" / "checkpoints.md"
    p = {"w": P["layer"]["w"]}
    with pytest.raises(ValueError) as error:
        restore_target(options(block_size=128), p, lion8bit().init(p))
    assert str(error.value) in " ".join(page.read_text(encoding="utf-8").split())


def test_norms_that_are_missing_are_refused_unless_that_is_welcome():
    tx, saved = lion8bit(percentile_clipping=5), lion8bit().init(P)
    check(
        lambda: restore_target(tx, P, saved),
        ValueError,
        ["`gnorm_history`", "start empty", *CONVERT],
    )
    assert restore_target(tx, P, saved, convert=True).gnorm_history is None


def test_a_state_in_another_place_cannot_be_a_target():
    """The target has to have the tree of what was saved."""
    for saved, there in [
        (optax.chain(optax.clip(1.0), lion8bit()), "at '1'"),
        (optax.lion(1e-3), "at '0'"),
    ]:
        call = lambda saved=saved: restore_target(lion8bit(), P, saved.init(P), convert=True)  # noqa: E731
        wants = [there, "at its top", "without a target", "`convert_state(restored, params, tx)`"]
        check(call, ValueError, wants)


# -------------------------------------------------------------------------------- damaged files


def test_a_checkpoint_with_a_damaged_file_is_whole_or_refused(tmp_path):
    """Whatever is missing or cut short: the numbers that were saved, or an error."""
    root = pathlib.Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.damaged_files", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    outcomes = json.loads(run.stdout.splitlines()[-1])
    assert set(outcomes.values()) == {"whole", "refused"}
    refused = [name for name, outcome in outcomes.items() if outcome == "refused"]
    assert {"_METADATA missing", "manifest.ocdbt missing"} <= set(refused)
    codes = [name for name in refused if name.startswith("ocdbt.process_0/d/")]
    assert {name.split()[-1] for name in codes} == {"missing", "cut"}


def test_a_checkpoint_that_says_nothing_is_no_target(tmp_path):
    problem.save(tmp_path / "saved", lion8bit().init(P))
    (tmp_path / "saved" / "_METADATA").unlink()
    saved = problem.metadata(tmp_path / "saved")
    wants = ["`saved` has no arrays", "missing or damaged"]
    check(lambda: restore_target(lion8bit(), P, saved), ValueError, wants)
    check(lambda: restore_target(lion8bit(), P, {}), ValueError, wants)


def test_bytes_that_are_cut_short_are_refused():
    content = flax.serialization.to_bytes(lion8bit().init(P))
    like = lion8bit().init(P)
    untouched = problem.bits(like)
    with pytest.raises(ValueError):
        flax.serialization.from_bytes(like, content[:-100])
    assert problem.bits(like) == untouched


def test_the_table_has_states_that_are_not_damaged():
    for tx in (LION, LAMB):
        tree = copy.deepcopy(raw(tx))
        assert problem.bits(convert_state(tree, P, tx)) == problem.bits(problem.filled(tx.init(P)))
