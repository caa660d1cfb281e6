"""The committed checkpoints are what bitsandbytes writes here and now, and it goes on from them."""

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

from tests import oracles
from tests.interop import problem
from tests.peers import write_checkpoints
from tests.peers.library import CHECKPOINTS, arrays, files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoints.main(folder)
    return folder


NAMES = sorted(path.name for path in CHECKPOINTS.iterdir())


def leaves(tree, where=()):
    """All entries of a checkpoint, by path."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*where, key))
    else:
        yield where, tree


def test_the_script_writes_the_committed_files(written):
    assert sorted(path.name for path in written.iterdir()) == NAMES
    assert sum(path.stat().st_size for path in CHECKPOINTS.iterdir()) < 400_000


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".json")])
def test_a_committed_checkpoint_is_what_is_written_today(written, name):
    """Exactly but for float32: instructions of another CPU round products and maps otherwise.

    A level of the map is off by 2 ulp at most. Five steps of two roundings each are off by less
    than 1e-6 of the largest element. Where that is just beside the middle of two levels, the codes
    are neighbours.
    """
    order = "logical" if "32bit" in name else None
    ours, theirs = (dict(leaves(files.read(x / name, order=order))) for x in (CHECKPOINTS, written))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        other = theirs[path]
        if not isinstance(value, np.ndarray):
            assert (path, value) == (path, other)
        elif value.dtype == np.uint8:
            apart = np.abs(value.astype(int) - other)
            assert apart.max() <= 1, path
            assert np.count_nonzero(apart) <= 1e-3 * value.size, path
        elif path[-1].startswith("qmap"):
            np.testing.assert_array_max_ulp(value, other, 2)
        else:
            np.testing.assert_allclose(value, other, rtol=0, atol=1e-6 * np.abs(other).max())


def test_the_table_of_parameters_is_what_is_written(written):
    name = "checkpoints.json"
    assert (CHECKPOINTS / name).read_text() == (written / name).read_text()


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_the_one_of_the_tests(signed):
    theirs = bnb.functional.create_dynamic_map(signed=signed).numpy()
    np.testing.assert_array_max_ulp(oracles.bitsandbytes_map(signed), theirs, 2)


def test_the_long_map_is_too_long_and_low():
    """What 0.36 to 0.41.0 had: 524 levels, of which the 256th is the last that a code can name."""
    levels = write_checkpoints.long_map()
    assert len(levels) == 524
    assert levels[255] == pytest.approx(0.093, abs=5e-4)


def one_more_step(name, checkpoint):
    """Parameters and slots, by path, after a step from a checkpoint."""
    optimizer, params = write_checkpoints.optimizer_of(*write_checkpoints.SAVED[name][:3])
    optimizer.load_state_dict(checkpoint)
    write_checkpoints.take_step(optimizer, params, problem.STEPS)
    slots = arrays.as_arrays(optimizer.state_dict(), order="logical")["state"]
    return dict(leaves([{name: p.detach().numpy() for name, p in params.items()}, slots]))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", write_checkpoints.SAVED)
def test_bitsandbytes_goes_on_from_what_was_read_and_written(tmp_path, name, suffix):
    """As if it had loaded its own file: to the last bit."""
    own, copy = CHECKPOINTS / f"{name}.pt", tmp_path / f"x{suffix}"
    files.write(copy, files.read(own, order="logical"))
    expected = one_more_step(name, torch.load(own, weights_only=True))
    result = one_more_step(name, arrays.as_tensors(files.read(copy)))
    assert result.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(result[path], value, err_msg=str(path))
