"""Files of checkpoints where JAX is and PyTorch is not; `tests/peers` has the rest."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion._checkpoints.bitsandbytes import files
from tests.interop.loading import FOLDER


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


def test_without_pytorch_a_file_of_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    with pytest.raises(ImportError, match=r"pip install 'optax-lamblion\[torch\]'"):
        files.read(FOLDER / "lion8bit.pt")


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
