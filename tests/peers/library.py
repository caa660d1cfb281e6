"""The library's modules about checkpoint files, without the library: JAX is not installed here."""

import importlib
import pathlib
import sys
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "tests" / "interop" / "checkpoints"
EXPORTED = ROOT / "tests" / "interop" / "exported"

# A package of that name whose `__init__`, which imports JAX, does not run.
_package = types.ModuleType("optax_lamblion")
_package.__path__ = [str(ROOT / "optax_lamblion")]
sys.modules.setdefault("optax_lamblion", _package)

arrays = importlib.import_module("optax_lamblion._checkpoints.bitsandbytes.arrays")
files = importlib.import_module("optax_lamblion._checkpoints.bitsandbytes.files")
tensors = importlib.import_module("optax_lamblion._checkpoints.bitsandbytes.tensors")
torch_files = importlib.import_module("optax_lamblion._checkpoints.bitsandbytes.torch_files")
