"""Files of checkpoints: what was written is read, by this library and by PyTorch."""

import os
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.peers.library import CHECKPOINTS, arrays, files, tensors, torch_files

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
KINDS = (".pt", ".safetensors")
DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.uint8: np.dtype(np.uint8),
}
SHAPES = {"scalar": (), "vector": (5,), "cube": (3, 4, 5), "empty": (0, 3)}
GROUP = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 0.0, "weight_decay": 0.1, "t_alpha": None}


def checkpoint(slots, nested=True):
    """A checkpoint of one parameter, with number 3."""
    slots = {"step": 7, arrays.QUANT_STATE: slots} if nested else {"step": 7, **slots}
    return {"state": {3: slots}, "param_groups": [{**GROUP, "params": [3]}]}


def slots_of(checkpoint):
    slots = checkpoint["state"][3]
    return slots.get(arrays.QUANT_STATE, slots)


def tensor(dtype=torch.float32, shape=(3, 4)):
    numbers = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32)
    return (numbers * 3 - 20).abs().to(dtype).reshape(shape)


def as_numpy(tensor):
    return tensor.float().numpy()


def same(one, other):
    """Whether two checkpoints are equal, types and dtypes included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("suffix", KINDS)
def test_what_is_written_is_read(tmp_path, suffix, dtype, shape, nested):
    value = tensor(dtype, shape)
    path = tmp_path / f"optimizer{suffix}"
    files.write(path, checkpoint({"state1": value, "unorm_vec": torch.ones(1)}, nested))
    result = files.read(path)
    assert result["state"][3]["step"] == 7
    assert same(result["param_groups"], [{**GROUP, "params": [3]}])
    slot = slots_of(result)["state1"]
    assert slot.dtype == DTYPES[dtype]
    assert slot.shape == shape
    np.testing.assert_array_equal(slot.astype(np.float32), as_numpy(value))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_suffix_says_the_kind(tmp_path, suffix):
    path = tmp_path / f"optimizer{suffix}"
    files.write(path, checkpoint({"state1": tensor()}))
    assert path.read_bytes().startswith(b"PK") == (suffix != ".safetensors")
    assert same(files.read(path), arrays.as_arrays(checkpoint({"state1": tensor()})))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_both_formats_of_pytorch_are_read(tmp_path, zipped):
    written = checkpoint({"state1": tensor(torch.uint8), "state2": tensor(torch.bfloat16)})
    torch.save(written, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert same(files.read(tmp_path / "x.pt"), arrays.as_arrays(written))


def test_pytorch_reads_what_is_written_without_executing_anything(tmp_path):
    written = checkpoint({"state1": tensor(), "state2": tensor(torch.bfloat16)})
    written["param_groups"][0]["lr"] = np.float64(1e-3)  # a NumPy scalar would have to be executed
    files.write(tmp_path / "x.pt", written)
    read = torch.load(tmp_path / "x.pt", weights_only=True)
    assert read["param_groups"] == [{**GROUP, "params": [3]}]
    assert read["state"][3]["step"] == 7
    for name, value in slots_of(written).items():
        assert slots_of(read)[name].dtype == value.dtype
        assert torch.equal(slots_of(read)[name], value)


@pytest.mark.parametrize("name", sorted(path.stem for path in CHECKPOINTS.glob("*.pt")))
def test_both_kinds_of_a_checkpoint_are_read_alike(name):
    order = "logical" if "32bit" in name else None  # the CPU build's, and no scales to see it by
    one = files.read(CHECKPOINTS / f"{name}.pt", order=order)
    assert same(one, files.read(CHECKPOINTS / f"{name}.safetensors"))


def test_numbers_are_numbers_however_they_were_stored(tmp_path):
    written = checkpoint({"state1": tensor()})
    written["state"][3]["step"] = torch.tensor(7)
    written["param_groups"][0].update(lr=torch.tensor(0.5), params=torch.tensor([3]))
    torch.save(written, tmp_path / "x.pt")
    result = files.read(tmp_path / "x.pt")
    assert type(result["state"][3]["step"]) is int
    assert same(result["param_groups"], [{**GROUP, "lr": 0.5, "params": [3]}])


@pytest.mark.parametrize("suffix", KINDS)
def test_parameters_may_have_names_with_dots_for_numbers(tmp_path, suffix):
    """As FSDP has them."""
    slots = {"step": 7, arrays.QUANT_STATE: {"state1": np.ones(3, np.float32)}}
    written = {
        "state": {"block.0.weight": slots},
        "param_groups": [{**GROUP, "params": ["block.0.weight"]}],
    }
    files.write(tmp_path / f"x{suffix}", written)
    assert same(files.read(tmp_path / f"x{suffix}"), written)


@pytest.mark.parametrize("suffix", KINDS)
def test_parameters_are_in_the_order_of_their_groups(tmp_path, suffix):
    slots = {number: {"step": number, "state1": np.ones(3, np.float32)} for number in range(12)}
    files.write(
        tmp_path / f"x{suffix}",
        {"state": slots, "param_groups": [{**GROUP, "params": [*range(12)]}]},
    )
    assert list(files.read(tmp_path / f"x{suffix}")["state"]) == [*range(12)]


@pytest.mark.parametrize("suffix", KINDS)
def test_an_optimizer_without_a_step_has_an_empty_state(tmp_path, suffix):
    empty = {"state": {}, "param_groups": [{**GROUP, "params": [0, 1]}]}
    files.write(tmp_path / f"x{suffix}", empty)
    assert same(files.read(tmp_path / f"x{suffix}"), empty)


def test_read_only_and_foreign_arrays_are_written(tmp_path):
    big_endian = np.arange(4, dtype=">f4")
    frozen = np.arange(4, dtype=np.float32)
    frozen.flags.writeable = False
    for suffix in KINDS:
        path = tmp_path / f"x{suffix}"
        files.write(path, checkpoint({"state1": frozen, "state2": big_endian}))
        for value in slots_of(files.read(path)).values():
            np.testing.assert_array_equal(value, np.arange(4))


# Checkpoints of more than an optimizer


def test_a_key_picks_the_optimizer_out_of_a_training_checkpoint(tmp_path):
    own = checkpoint({"state1": tensor()})
    whole = {
        "epoch": 3,
        "model": {"w": tensor()},
        "optimizer": own,
        "trainer": {"optimizers": [own]},
    }
    torch.save(whole, tmp_path / "x.pt")
    for key in ("optimizer", "trainer/optimizers/0"):
        assert same(files.read(tmp_path / "x.pt", key=key), arrays.as_arrays(own))


def test_without_a_key_the_error_lists_where_optimizers_are(tmp_path):
    own = checkpoint({"state1": tensor()})
    torch.save({"model": {"optimizer": own}, "all": [own]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"`key='all/0'` or `key='model/optimizer'`"):
        files.read(tmp_path / "x.pt")


def test_a_key_that_is_not_there_lists_what_is(tmp_path):
    torch.save({"model": {"a": 1, "b": 2}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="'model/c', which `key` names. At model there is a, b"):
        files.read(tmp_path / "x.pt", key="model/c")
    with pytest.raises(ValueError, match="'model/a/0'.* At model/a there is no dict"):
        files.read(tmp_path / "x.pt", key="model/a/0")


@pytest.mark.parametrize("content", [{"weight": torch.ones(3)}, [1, 2], torch.ones(3)])
def test_a_file_without_an_optimizer_says_what_to_save(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"nowhere in it: save what `optimizer.state_dict\(\)`"):
        files.read(tmp_path / "x.pt")


def test_a_superfluous_key_is_said_to_be(tmp_path):
    torch.save({**checkpoint({"state1": tensor()}), "extra": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="at `key='extra'`. They are at its top: pass no `key`"):
        files.read(tmp_path / "x.pt", key="extra")


def test_a_key_is_a_prefix_in_safetensors(tmp_path):
    save_file(
        {"w": np.ones(3), "a.opt.state.0.step": np.array(2)},
        tmp_path / "x.safetensors",
        metadata={"a.opt.param_groups": '[{"lr": 1.0, "betas": [0.5, 0.5], "params": [0]}]'},
    )
    assert files.read(tmp_path / "x.safetensors", key="a/opt") == {
        "state": {0: {"step": 2}},
        "param_groups": [{"lr": 1.0, "betas": (0.5, 0.5), "params": [0]}],
    }
    with pytest.raises(ValueError, match="Pass `key='a/opt'`"):
        files.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["{", "3", '"ab"', "[3]", '[{"betas": 1}]'])
def test_settings_that_are_no_json_of_dicts_are_refused(tmp_path, text):
    save_file({"w": np.ones(3)}, tmp_path / "x.safetensors", metadata={"param_groups": text})
    with pytest.raises(ValueError, match="no JSON list of dicts"):
        files.read(tmp_path / "x.safetensors")


# Writing


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"x{suffix}"
    files.write(path, checkpoint({"state1": tensor()}))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        files.write(path, checkpoint({"state1": tensor() + 1}))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    monkeypatch.undo()
    files.write(path, checkpoint({"state1": tensor() + 1}))
    assert path.read_bytes() != before


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_may_be_read_by_whom_other_files_may(tmp_path, suffix):
    (tmp_path / "other").touch()
    files.write(tmp_path / f"x{suffix}", checkpoint({"state1": tensor()}))
    assert (tmp_path / f"x{suffix}").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_safetensors_cannot_hold_is_named(tmp_path):
    for slots, name in (({"note": "text"}, "state.3.note"), ({"none": None}, "state.3.none")):
        with pytest.raises(TypeError, match=f"`{name}` is .* Use .pt."):
            files.write(tmp_path / "x.safetensors", checkpoint(slots, nested=False))
    setting = checkpoint({"state1": tensor()})
    setting["param_groups"][0]["schedule"] = test_what_safetensors_cannot_hold_is_named
    with pytest.raises(TypeError, match="`param_groups` cannot be written as JSON.* Use .pt."):
        files.write(tmp_path / "x.safetensors", setting)
    assert not os.listdir(tmp_path)


def test_there_must_be_a_folder_to_write_into(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder '.*missing' to write 'x.pt' into"):
        files.write(tmp_path / "missing" / "x.pt", checkpoint({"state1": tensor()}))


# What PyTorch itself reads


def kinds():
    """What a training checkpoint may have in it."""
    whole = torch.arange(24.0).reshape(4, 6)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    steps = torch.optim.Adam(model.parameters())
    with_attribute = torch.ones(3)
    with_attribute.is_paged = True
    return {
        "model": model.state_dict(),  # an OrderedDict with attributes, and int64 without dimensions
        "parameter": model[0].weight,
        "optimizer": steps.state_dict(),
        "schedule": torch.optim.lr_scheduler.MultiStepLR(steps, [3, 5, 5]).state_dict(),
        "views": [whole, whole.t(), whole[1:, ::2], whole[2, 3], whole[:0], whole.view(2, 12),
                  torch.ones(2).expand(3, 2)],
        "kinds": [torch.ones(2, dtype=x) for x in (*DTYPES, torch.bool, torch.int64, torch.int8,
                  torch.float64, torch.complex64)],
        "others": [None, True, -1, 2**40, -(2**70), 1.5, "text", "\u00e9\u4e2d", (), (1, (2,)), [],
                   {}, torch.Size([2, 3]), b"bytes"],
        "paged": with_attribute,
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_everything_is_read_as_pytorch_reads_it(tmp_path, zipped, protocol):
    torch.save(
        kinds(),
        tmp_path / "x.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    ours, _ = torch_files.load(tmp_path / "x.pt")
    # Weights only it reads protocol 2, as which it writes; and this file is ours.
    theirs = torch.load(tmp_path / "x.pt", weights_only=protocol == 2)

    def compare(a, b, path):
        if isinstance(b, torch.Tensor):
            array = arrays.as_array(a, order="logical")
            expected = arrays.as_array(b.detach(), order="logical")
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape), path
            assert array.tobytes() == expected.tobytes(), path
            assert tensors.extent(a)[1] == b.stride() or not array.size, path
        elif isinstance(b, dict):
            assert list(a) == list(b), path
            for key in b:
                compare(a[key], b[key], (*path, key))
        elif isinstance(b, list | tuple):
            assert len(a) == len(b), path
            for i in range(len(b)):
                compare(a[i], b[i], (*path, i))
        else:
            assert (a, type(a)) == (b, type(b)), path

    compare(ours, theirs, ())


def test_a_file_of_the_other_byte_order_is_read(tmp_path):
    written = checkpoint({"state1": tensor(), "state2": tensor(torch.bfloat16)})
    torch.save(written, tmp_path / "little.pt")
    with (
        zipfile.ZipFile(tmp_path / "little.pt") as old,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as new,
    ):
        for part in old.infolist():
            content = old.read(part)
            if part.filename.endswith("byteorder"):
                content = b"big"
            if "/data/" in part.filename:
                width = 4 if part.filename.endswith("/0") else 2
                content = np.frombuffer(content, f"u{width}").byteswap().tobytes()
            new.writestr(part.filename, content)
    assert same(files.read(tmp_path / "big.pt"), files.read(tmp_path / "little.pt"))
