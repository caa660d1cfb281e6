"""The machine, the versions and the sources of a run.

    python -m tests.gpu.environment

prints them as JSON. In a process of its own, so that whoever asks keeps no memory of the GPU.
"""

import hashlib
import importlib.metadata
import pathlib
import platform
import subprocess

from optax_lamblion.cli._output import print_json

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "numpy", "optax", "flax"),
    *("jax-triton", "triton", "torch", "bitsandbytes", "flashoptim-jax"),
)


def describe():
    """Everything that a number may depend on. `device` is None without an NVIDIA GPU."""
    return {
        "device": _device(),
        "driver": _nvidia_smi(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "sources": sources(),
    }


def sources():
    """A hash of what is tested: tells two states apart where there is no git."""
    digest = hashlib.sha256()
    for package in ("optax_lamblion", "pallas_kernels"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _device():
    import jax

    from optax_lamblion._implementation import chosen

    try:
        gpus = jax.devices("cuda")
    except RuntimeError:
        return None
    gpu, stats = gpus[0], gpus[0].memory_stats() or {}
    implementation, why = chosen()
    return {
        "kind": gpu.device_kind,
        "count": len(gpus),
        "compute_capability": str(gpu.compute_capability),
        "memory_bytes": stats.get("bytes_limit"),
        "implementation": implementation,
        "why": why,
    }


def _nvidia_smi():
    basic = ("name", "driver_version", "memory.total")
    more = ("clocks.max.sm", "clocks.max.mem", "power.limit", "ecc.mode.current")
    for fields in ((*basic, *more), basic):  # one field that a driver does not know fails all
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        if text := _output(command):
            return dict(zip(fields, map(str.strip, text.splitlines()[0].split(",")), strict=False))
    return None


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments):
    return _output(["git", "-C", str(ROOT), *arguments])


def _output(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    print_json(describe())
