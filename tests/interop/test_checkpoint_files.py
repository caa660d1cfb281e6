"""Files of checkpoints where JAX is and PyTorch is not; `tests/peers` has the rest."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion._checkpoints.bitsandbytes import files
from tests.interop.loading import FOLDER, same_bits


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.uint8])
@pytest.mark.parametrize("shape", [(), (3, 4)])
def test_arrays_of_jax_are_written_and_read(tmp_path, dtype, shape):
    value = jnp.arange(np.prod(shape)).astype(dtype).reshape(shape)
    checkpoint = {
        "state": {0: {"step": jnp.asarray(3), "state1": value}},
        "param_groups": [{"lr": jnp.float32(0.5), "betas": (0.5, 0.75), "params": [0]}],
    }
    files.write(tmp_path / "x.safetensors", checkpoint)
    result = files.read(tmp_path / "x.safetensors")
    assert result["param_groups"] == [{"lr": 0.5, "betas": (0.5, 0.75), "params": [0]}]
    assert result["state"][0]["step"] == 3
    slot = result["state"][0]["state1"]
    assert (slot.shape, slot.dtype) == (value.shape, value.dtype)
    np.testing.assert_array_equal(slot, value)


def test_pytorch_is_needed_to_write_its_files_and_not_to_read_them(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    read = files.read(FOLDER / "lion8bit.pt")
    with pytest.raises(ImportError, match="pip install torch`"):
        files.write(tmp_path / "x.pt", read)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.pt")))
def test_both_kinds_of_a_checkpoint_are_read_alike(name):
    """The other kind was written from what PyTorch read (`tests/peers/write_checkpoints.py`)."""
    order = "logical" if "32bit" in name else None  # the CPU build's, and no scales to see it by
    one, other = (files.read(FOLDER / f"{name}.{x}", order=order) for x in ("pt", "safetensors"))
    assert one["param_groups"] == other["param_groups"]
    assert jax.tree.all(jax.tree.map(same_bits, one["state"], other["state"]))


def test_files_are_read_without_jax_or_pytorch():
    """In the environment of the other tests JAX is missing, so nothing may come to need it."""
    script = f"""
import sys, types
package = types.ModuleType("optax_lamblion")
package.__path__ = {[*map(str, sys.modules["optax_lamblion"].__path__)]}
sys.modules["optax_lamblion"] = package
from optax_lamblion._checkpoints.bitsandbytes import files
checkpoint = files.read({str(FOLDER / "lion8bit.safetensors")!r})
assert len(checkpoint["state"]) == 4
assert not {{"jax", "torch", "optax", "pallas_kernels"}} & set(sys.modules), sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
