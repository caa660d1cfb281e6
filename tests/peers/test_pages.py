"""What `docs/bitsandbytes.md` has to be typed on the side of PyTorch."""

import json
import re
import shutil

import bitsandbytes as bnb
import pytest
import torch

from tests.interop import problem
from tests.peers.library import EXPORTED, ROOT, arrays, files

PAGE = ROOT / "docs" / "bitsandbytes.md"
SAVE, LOAD = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
NAMES = ["small", "matrix", "ragged"]  # of what is exported, in its order


@pytest.fixture
def names(tmp_path, monkeypatch):
    """A folder to write into, and the names that the page takes for granted."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Module()
    for name in NAMES:
        value = torch.from_numpy(problem.params()[name])
        model.register_parameter(name, torch.nn.Parameter(value))
    return {"model": model, "optimizer": bnb.optim.Lion8bit(model.parameters(), lr=1e-3)}


def test_what_it_saves_can_be_read(names, tmp_path):
    for p in names["model"].parameters():
        p.grad = torch.ones_like(p)
    names["optimizer"].step()
    exec(SAVE, names)
    checkpoint = files.read(tmp_path / "optimizer.pt")
    assert checkpoint["state"][1][arrays.QUANT_STATE]["state1"].shape == problem.SHAPES["matrix"]
    assert json.loads((tmp_path / "names.json").read_text()) == NAMES


def test_what_was_exported_can_be_loaded(names, tmp_path):
    shutil.copy(EXPORTED / "lion8bit.safetensors", tmp_path)
    exec(LOAD, names)
    exported = files.read(tmp_path / "lion8bit.safetensors")
    for number, p in enumerate(names["model"].parameters()):
        slots = exported["state"][number]
        loaded = names["optimizer"].state[p]
        assert loaded["step"] == slots["step"] == problem.STEPS
        state1 = torch.from_numpy(slots[arrays.QUANT_STATE]["state1"])
        assert loaded["state1"].dtype == state1.dtype and torch.equal(loaded["state1"], state1)
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in names["model"].parameters()]
    names["optimizer"].step()
    for p, old in zip(names["model"].parameters(), before, strict=True):
        assert not torch.equal(p, old)
