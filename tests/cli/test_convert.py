"""`optax-lamblion convert`: from a file of bitsandbytes to an Orbax checkpoint and back."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from optax_lamblion import (
    AdamState,
    StateOptions,
    adamw8bit,
    convert_state,
    from_bitsandbytes,
    lion8bit,
)
from optax_lamblion._checkpoints.bitsandbytes import files
from optax_lamblion.cli import main
from tests.interop import loading, problem


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(loading.NAMES["lion8bit"]) + "\n")
    return path


def restore(path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def test_a_file_is_shown(capsys):
    assert main(["convert", str(loading.FOLDER / "lamb8bit.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "group 1: weight_decay=0.0, lr=0.01" in out
    (row,) = [line for line in out.splitlines() if "4097" in line]
    assert row.split() == ["2", "4097", "2", "8", "17", "5"]


def test_a_file_is_shown_as_json(capsys, names):
    source = str(loading.FOLDER / "lion8bit.safetensors")
    assert main(["convert", source, "--names", str(names), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"][1] == {
        "parameter": "ragged", "shape": [4097], "moments": 1, "bits": 8, "scales": 17, "step": 5,
    }  # fmt: skip
    assert shown["groups"] == [{"lr": 1e-3, "betas": [0.9, 0.99], "eps": 0.0, "weight_decay": 0.1}]


def test_an_import_is_what_the_library_imports(capsys, tmp_path, names):
    source, target = str(loading.FOLDER / "lion8bit.safetensors"), tmp_path / "state"
    assert main(["convert", source, str(target), "--names", str(names)]) == 0
    out = capsys.readouterr().out
    assert 'lion8bit(options=StateOptions(block_size=256, codec="dynamic"))' in out
    p = {x: jnp.zeros(problem.SHAPES[x]) for x in loading.NAMES["lion8bit"]}
    tx = loading.optimizer("lion8bit")
    expected = from_bitsandbytes(source, p, tx, names=loading.NAMES["lion8bit"])
    found = convert_state(restore(target), p, tx)
    assert jax.tree.all(jax.tree.map(loading.same_bits, found, expected))


def test_imports_can_be_turned_and_stored_in_another_way(tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["a/kernel", "b", "c", "d/kernel"]))
    source, target = str(loading.FOLDER / "lion8bit.safetensors"), tmp_path / "state"
    words = ["--names", str(names), "--transpose", "*kernel", "--codec", "power"]
    assert main(["convert", source, str(target), *words, "--block-size", "64"]) == 0
    state = restore(target)
    assert list(state["layout"]) == ["power_64_v2"]
    assert state["mu"]["a"]["kernel"].shape == (96, 64)
    assert main(["convert", source, str(tmp_path / "32"), "--bits", "32"]) == 0
    assert {x.dtype for x in jax.tree.leaves(restore(tmp_path / "32")["mu"])} == {
        np.dtype(np.float32)
    }


def test_lamb_is_found_by_the_norm_that_it_keeps(capsys, tmp_path):
    source = str(loading.FOLDER / "lamb32bit.safetensors")
    assert main(["convert", source, str(tmp_path / "state")]) == 0
    assert "lamb32bit()" in capsys.readouterr().out
    assert set(restore(tmp_path / "state")["nu"]) == {"0", "1"}


@pytest.fixture
def adam(tmp_path):
    """A file as of AdamW, which is that of LAMB without the norm; for all but some parameters."""

    def write(keep=()):
        checkpoint = loading.read("lamb8bit")
        for number in checkpoint["state"].keys() - set(keep):
            del loading.slots(checkpoint, number)["unorm_vec"]
        files.write(tmp_path / "adam.safetensors", checkpoint)
        return str(tmp_path / "adam.safetensors")

    return write


def test_two_moments_without_that_norm_are_of_adamw(capsys, tmp_path, adam):
    assert main(["convert", adam(), str(tmp_path / "state")]) == 0
    assert 'adamw8bit(options=StateOptions(block_size=256, codec="dynamic"))' in (
        capsys.readouterr().out
    )
    p = {str(i): jnp.zeros(problem.SHAPES[x]) for i, x in enumerate(loading.NAMES["lamb8bit"])}
    tx = adamw8bit(options=StateOptions(codec="dynamic"))
    found = convert_state(restore(tmp_path / "state"), p, tx)
    saved = loading.slots(loading.read("lamb8bit"))
    assert isinstance(found, AdamState)
    assert loading.same_bits(found.nu["0"], saved["state2"])


def test_the_optimizer_that_goes_on_can_be_named(capsys, tmp_path, adam):
    for optimizer in ("lamb", "adamw"):
        words = ["convert", adam(), str(tmp_path / optimizer), "--optimizer", optimizer]
        assert main(words) == 0
        assert f"{optimizer}8bit(" in capsys.readouterr().out


def test_what_cannot_be_told_apart_has_to_be_named(capsys, tmp_path, adam):
    message = error(capsys, adam(keep=[1]), tmp_path / "state")
    assert "--optimizer lamb" in message and message.count("\n") == 1
    assert not (tmp_path / "state").exists()
    assert main(["convert", adam(keep=[1]), str(tmp_path / "x"), "--optimizer", "adamw"]) == 0
    assert "`adamw` or `lamb`" in error(capsys, adam(), tmp_path / "y", "--optimizer", "lion")


def test_an_export_is_the_file_that_was_imported(capsys, tmp_path, names):
    source, state = str(loading.FOLDER / "lion8bit.safetensors"), str(tmp_path / "state")
    back = tmp_path / "back.safetensors"
    assert main(["convert", source, state, "--names", str(names)]) == 0
    assert main(["convert", state, str(back), "--names", str(names)]) == 0
    assert f"Wrote {back}" in capsys.readouterr().out
    theirs = loading.read("lion8bit")
    ours = files.read(back)
    for number in theirs["state"]:
        for key in ("state1", "absmax1"):
            if key in loading.slots(theirs, number):
                pair = loading.slots(theirs, number)[key], loading.slots(ours, number)[key]
                assert loading.same_bits(*pair)


def test_a_file_becomes_the_other_kind_of_file(tmp_path):
    target = tmp_path / "copy.safetensors"
    assert main(["convert", str(loading.FOLDER / "lamb8bit.safetensors"), str(target)]) == 0
    a, b = loading.read("lamb8bit"), files.read(target)
    assert a["param_groups"] == b["param_groups"]
    assert jax.tree.all(jax.tree.map(loading.same_bits, a["state"], b["state"]))


def error(capsys, *words):
    assert main(["convert", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_converted_is_said_in_a_line(capsys, tmp_path, names):
    file = loading.FOLDER / "lion8bit.safetensors"
    assert "no file" in error(capsys, tmp_path / "none.safetensors")
    assert "neither a file" in error(capsys, tmp_path / "none")
    (tmp_path / "there").mkdir()
    assert "is there already" in error(capsys, file, tmp_path / "there")
    assert "--names" in error(capsys, tmp_path / "there", tmp_path / "x.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(file.read_bytes()[:3000])
    assert str(bad) in error(capsys, bad)
    names.write_text("matrix\nragged\n")
    assert "4 parameters" in error(capsys, file, tmp_path / "state", "--names", names)
    assert not (tmp_path / "state").exists()
    names.write_text("[1, 2]")
    assert "list of paths" in error(capsys, file, "--names", names)


def test_an_orbax_checkpoint_without_a_lion_is_refused(capsys, tmp_path, names):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", {"w": jnp.zeros(3)})
    words = (tmp_path / "other", tmp_path / "x.safetensors", "--names", names)
    assert "0 states of Lion" in error(capsys, *words)


def test_a_file_of_pytorch_is_imported_without_it(monkeypatch, tmp_path, names):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    for suffix in ("pt", "safetensors"):
        source = str(loading.FOLDER / f"lion8bit.{suffix}")
        assert main(["convert", source, str(tmp_path / suffix), "--names", str(names)]) == 0
    one, other = restore(tmp_path / "pt"), restore(tmp_path / "safetensors")
    assert jax.tree.all(jax.tree.map(loading.same_bits, one, other))


def test_to_write_a_file_of_pytorch_takes_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    words = (loading.FOLDER / "lion8bit.safetensors", tmp_path / "x.pt")
    assert "pip install torch" in error(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_state_inside_of_a_checkpoint_is_exported(tmp_path, names):
    p = {x: jnp.ones(problem.SHAPES[x]) for x in loading.NAMES["lion8bit"]}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", {"params": p, "opt_state": (lion8bit().init(p),)})
    target = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "run"), str(target), "--names", str(names)]) == 0
    exported = files.read(target)
    assert loading.slots(exported)["state1"].shape == (64, 96)
    assert not np.any(loading.slots(exported)["absmax1"])


def test_a_file_that_does_not_list_its_parameters_is_refused(capsys, tmp_path):
    checkpoint = loading.read("lion8bit")
    del checkpoint["param_groups"][0]["params"]
    files.write(tmp_path / "x.safetensors", checkpoint)
    assert "`param_groups`" in error(capsys, tmp_path / "x.safetensors")
