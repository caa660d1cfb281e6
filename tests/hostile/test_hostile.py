"""Kinds of files that broke `convert` once, each with what is said of it."""

import contextlib
import errno
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from optax_lamblion import from_bitsandbytes, lion8bit
from optax_lamblion._checkpoints.bitsandbytes import files, pickled
from optax_lamblion._checkpoints.bitsandbytes.arrays import QUANT_STATE
from tests.hostile import corpus, running
from tests.interop import loading


def said(tmp_path, contents, *words):
    """What is said of files that are refused."""
    case = corpus.Case("one", contents, list(words))
    outcome = running.run(case, tmp_path)
    running.check(case, outcome)
    assert outcome.status == 2, outcome.out
    return outcome.err


def tree(**changes):
    checkpoint = loading.read("lion8bit_flat")
    return checkpoint | changes


def shared(depth):
    node = []
    for _ in range(depth):
        node = [node] * 10
    return node


def test_shared_lists_are_counted_as_often_as_they_are_mentioned(tmp_path):
    content = corpus.pt(tree(param_groups=[{"lr": shared(30), "params": [0]}]))
    start = time.monotonic()
    assert "1,000,000 entries" in said(tmp_path, {"x.pt": content}, "x.pt")
    assert time.monotonic() - start < 5


def test_a_list_that_holds_itself_has_no_end(tmp_path):
    own = []
    own.append(own)
    content = corpus.pt(tree(param_groups=[{"lr": own, "params": [0]}]))
    assert "inside of each other" in said(tmp_path, {"x.pt": content}, "x.pt")


def test_a_long_program_is_stopped(tmp_path):
    content = corpus.archive(b"\x80\x02" + b"]" * 2_100_000 + b".", {})
    assert "2,000,000 instructions" in said(tmp_path, {"x.pt": content}, "x.pt")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((10**12,), (0,), 0), ((5,), (1,), 0), ((4,), (1,), 1), ((2, 3), (2, 1), 0),
     ((3,), (2**62,), 0), ((-1,), (1,), 0), ((4,), (-1,), 3), ((1,), (1,), 2**70)],
)  # fmt: skip
def test_a_tensor_beyond_its_numbers_is_not_made(tmp_path, shape, strides, offset):
    beyond = corpus.Tensor(np.ones(4, np.float32), shape, strides, offset)
    content = corpus.pt(tree(state={0: {"step": 1, "state1": beyond}}))
    message = said(tmp_path, {"x.pt": content}, "x.pt", "out")
    assert "damaged" in message or "many times over" in message


@pytest.mark.parametrize("depth", [100, 50_000])
def test_settings_that_are_nested_deeply(tmp_path, depth):
    text = '[{"lr": ' + "[" * depth + "]" * depth + ', "params": [0]}]'
    content = corpus.safetensors(tree(), text)
    said(tmp_path, {"x.safetensors": content}, "x.safetensors")


@pytest.mark.parametrize(
    "step", [float("inf"), float("nan"), 10**400, -7, 0.5, 2**31, "5", None, [5]]
)
@pytest.mark.parametrize("nested", [False, True])
def test_steps_that_are_none(tmp_path, step, nested):
    entry = tree()["state"][0] | {"step": [step] if nested else step}
    content = corpus.pt(tree(state={0: entry}))
    message = said(tmp_path, {"x.pt": content}, "x.pt", "out")
    assert "step" in message or "4300" in message


WRONG = {
    "a list of states": (dict(state=[]), "`state` must be a dict"),
    "a tensor for an entry": (dict(state={0: np.ones(3)}), "got int and "),
    "a number for a slot": (dict(state={0: {"step": 1, "state1": 3}}), "must be a tensor, got int"),
    "a number for scales": (
        dict(state={0: {"step": 1, "state1": np.ones(3, "u1"), "absmax1": 3}}), "must be a tensor",
    ),
    "a list for what is nested": (
        dict(state={0: {"step": 1, QUANT_STATE: [1]}}), "must be a dict, got list",
    ),
    "a dict of groups": (dict(param_groups={"lr": 1}), "must be a list of dicts"),
    "parameters that are a number": (dict(param_groups=[{"params": 3}]), "which `params`"),
    "parameters that are lists": (dict(param_groups=[{"params": [[1]]}]), "which `params`"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_kinds_that_are_wrong(tmp_path, name):
    changes, message = WRONG[name]
    assert message in said(tmp_path, {"x.pt": corpus.pt(tree(**changes))}, "x.pt", "out")
    with pytest.raises((TypeError, ValueError), match=message):  # as a state dict in memory, too
        from_bitsandbytes(tree(**changes), [jnp.ones(3)], lion8bit())


def test_what_commands_a_terminal_is_shown_escaped(tmp_path):
    group = {"lr": 1.0, "params": [0], corpus.ESCAPE: corpus.ESCAPE}
    content = corpus.safetensors(tree(), json.dumps([group]))
    case = corpus.Case("one", {"x.safetensors": content, "names": corpus.ESCAPE.encode()},
                       ["x.safetensors", "--names", "names"])  # fmt: skip
    outcome = running.run(case, tmp_path)
    running.check(case, outcome)
    assert outcome.out.count("\\x1b]0;gotcha") == 3


NAMES = {
    "": "cannot be called ''", "/": "cannot be called", "../x": "cannot be called",
    "a\na": "more than once", "a\na/b": "inside of it", "a/b\na": "inside of it",
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
def test_names_that_cannot_be_parameters(tmp_path, names):
    numbers = [0] if "\n" not in names else [0, 1]
    one = tree()["state"][0]
    checkpoint = {"state": dict.fromkeys(numbers, one), "param_groups": [{"params": numbers}]}
    listed = json.dumps(names.split("\n"))
    contents = {"x.safetensors": corpus.safetensors(checkpoint), "names": listed.encode()}
    message = said(tmp_path, contents, "x.safetensors", "out", "--names", "names")
    assert NAMES[names] in message or "another one cannot both" in message


# ------------------------------------------------------------------- nothing is ever executed


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_execute_something_does_not(tmp_path, protocol):
    trap = pickle.dumps({"state": {}, "param_groups": [], "other": Trap(tmp_path / "x")}, protocol)
    for content in (trap, corpus.archive(trap, {})):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(ValueError, match="Nothing in it was executed|damaged"):
            files.read(tmp_path / "x.pt")
    assert not (tmp_path / "x").exists()
    pickle.loads(trap)
    assert (tmp_path / "x").exists()  # so it is a trap


def test_what_is_named_is_refused_before_it_is_looked_up():
    for name in ("builtins.eval", "optax_lamblion.lion8bit", "torch._utils._rebuild_tensor"):
        module, _, last = name.rpartition(".")
        program = f"c{module}\n{last}\n(tR.".encode()
        with pytest.raises(pickled.Refused, match=name):
            pickled.Machine({}).load(io.BytesIO(program))


# -------------------------------------------------------------------------------- flipped bits


@pytest.mark.parametrize("name", ["lion8bit", "lamb32bit"])
def test_a_flipped_bit_in_a_pt_file_is_noticed_or_nothing_changes(tmp_path, name):
    order = "logical" if "32bit" in name else None
    whole = files.read(loading.FOLDER / f"{name}.pt", order=order)
    content = (loading.FOLDER / f"{name}.pt").read_bytes()
    rng, noticed = np.random.default_rng(0), 0
    for at in rng.integers(0, 8 * len(content), 120):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            found = files.read(tmp_path / "x.pt", order=order)
        except ValueError:
            noticed += 1
            continue
        assert same(found, whole), f"bit {at}"
    assert noticed > 60  # the others are padding and what says the same twice


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return loading.same_bits(a, b) if isinstance(a, np.ndarray) else a == b


# ------------------------------------------------------------------------------- no more room


@contextlib.contextmanager
def room(size):
    """No file may be larger than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, target):
    contents = {"x.safetensors": (loading.FOLDER / "lion8bit.safetensors").read_bytes()}
    case = corpus.Case("one", contents, ["x.safetensors", target])
    corpus.write(case, tmp_path)
    with room(2000):
        outcome = running.run(corpus.Case("one", {}, case.words), tmp_path)
    assert outcome.status == 2, outcome.out
    assert outcome.err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["x.safetensors"]


def test_orbax_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointer, "wait_until_finished", fail)
    contents = {"x.safetensors": (loading.FOLDER / "lion32bit.safetensors").read_bytes()}
    assert "No space left" in said(tmp_path, contents, "x.safetensors", "out")


def test_a_pipe_that_nobody_reads_and_a_full_device_are_no_traceback(tmp_path):
    """In a process of its own, whose output is closed."""
    program = "from optax_lamblion.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "convert",
             str(loading.FOLDER / "lion8bit.safetensors"), "--json"]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_a_header_of_a_length_that_no_file_has(tmp_path):
    content = struct.pack("<Q", 2**62) + b"{}"
    assert "damaged" in said(tmp_path, {"x.safetensors": content}, "x.safetensors")


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="ordinary file"):
        files.read(tmp_path / "x.pt")


def test_a_file_of_too_many_tensors_is_not_read(tmp_path, monkeypatch):
    content = corpus.safetensors(tree())
    monkeypatch.setattr(files, "_MOST_TENSORS", 3)
    assert "up to 3 are read" in said(tmp_path, {"x.safetensors": content}, "x.safetensors")
