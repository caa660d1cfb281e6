"""Files that cannot be read: what is said, and that nothing in them is executed."""

import argparse
import io
import os
import pickle
import sys
import tarfile
import warnings

import pytest
import torch

from tests.peers.library import CHECKPOINTS, files

REAL = {suffix: CHECKPOINTS / f"lion8bit{suffix}" for suffix in (".pt", ".safetensors")}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def saved(content, path, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_a_file_that_would_execute_something_is_refused_and_does_not(tmp_path, zipped):
    marker = tmp_path / "executed"
    optimizer = torch.load(REAL[".pt"], weights_only=True)
    path = saved({**optimizer, "other": Trap(marker)}, tmp_path / "x.pt", zipped)
    message = r"needs `\w+.mkdir`, not only .* Nothing in it was executed. .*weights_only=False"
    with pytest.raises(ValueError, match=message):
        files.read(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # so it is a trap


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_not_executed(tmp_path, protocol):
    marker = tmp_path / "executed"
    content = pickle.dumps(Trap(marker), protocol)
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(ValueError, match="refused: it needs|no file of `torch.save` at all"):
        files.read(tmp_path / "x.bin")
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()


def test_the_environment_cannot_make_it_execute(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "executed"
    path = saved({"x": Trap(marker)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="Nothing in it was executed"):
        files.read(path, key="x")
    assert not marker.exists()


def test_a_refusal_names_what_the_file_needs(tmp_path):
    content = {"args": argparse.Namespace(lr=1), "optimizer": {"state": {}, "param_groups": []}}
    path = saved(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="needs `argparse.Namespace`"):
        files.read(path, key="optimizer")


def test_a_scripted_module_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on its way out of PyTorch
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
        with pytest.raises(ValueError, match="TorchScript archive.* Nothing in it was executed"):
            files.read(tmp_path / "x.pt")


def test_the_tar_format_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.pt", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="tar file of PyTorch 0.1.* Nothing in it was executed"):
        files.read(tmp_path / "x.pt")


CUTS = (0, 1, 3, 4, 8, 9, 40, 0.1, 0.5, 0.9, -100, -1)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_a_file_that_is_cut_short_is_said_to_be(tmp_path, kind, cut):
    """`cut` is a number of bytes, from the start or the end, or a share of the file."""
    if kind == "safetensors":
        path, whole = tmp_path / "x.safetensors", REAL[".safetensors"]
    else:
        path, content = tmp_path / "x.pt", torch.load(REAL[".pt"], weights_only=True)
        whole = saved(content, tmp_path / "whole.pt", zipped=kind == "zip")
    content = whole.read_bytes()
    content = content[: int(len(content) * cut) if isinstance(cut, float) else cut]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"'.*' \({len(content)} bytes\) is damaged, cut short"):
        files.read(path)


@pytest.mark.parametrize(("wrong", "right"), [(".pt", ".safetensors"), (".safetensors", ".pt")])
def test_a_file_with_the_other_suffix_is_recognised(tmp_path, wrong, right):
    path = tmp_path / f"x{wrong}"
    path.write_bytes(REAL[right].read_bytes())
    with pytest.raises(ValueError, match=f"begins like a {right} file; if it is one, rename it"):
        files.read(path)


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((0x280).to_bytes(8, "little") + b'{"state')
    with pytest.raises(ValueError, match="damaged, cut short, or no .safetensors file"):
        files.read(path)


@pytest.mark.parametrize("name", ["x.npz", "x", "x.pt.gz", "x.PT"])
def test_other_suffixes_are_refused_before_anything_else(tmp_path, name):
    for function in (files.read, lambda path: files.write(path, {})):
        with pytest.raises(ValueError, match=r"Files here end in .pt, .pth, .bin, .ckpt"):
            function(tmp_path / name)


@pytest.mark.parametrize("suffix", REAL)
def test_a_missing_file_and_a_folder_are_told_apart(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match="There is no file '.*x"):
        files.read(tmp_path / f"x{suffix}")
    (tmp_path / f"x{suffix}").mkdir()
    with pytest.raises(ValueError, match="is a folder. Name the file in it"):
        files.read(tmp_path / f"x{suffix}")


def test_pytorch_writes_its_files_and_is_not_needed_to_read_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    read = files.read(REAL[".pt"])
    with pytest.raises(ImportError, match="pip install torch`"):
        files.write(tmp_path / "x.pt", read)
    assert not os.listdir(tmp_path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install safetensors`"):
        files.read(REAL[".safetensors"])
    with pytest.raises(ImportError, match="pip install safetensors`"):
        files.write(tmp_path / "x.safetensors", {"state": {}, "param_groups": []})
    assert not os.listdir(tmp_path)


def test_a_file_without_checksums_says_how_it_came_to_be_so(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(
            {"state": {0: {"state1": torch.ones(9)}}, "param_groups": []}, tmp_path / "x.pt"
        )
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(ValueError, match=r"set_crc32_options\(False\)"):
        files.read(path)
