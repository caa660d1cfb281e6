"""What takes long is done once for all processes of pytest, in parts, by processes of its own.

Under pytest-xdist, the first test that needs it has the parts done one after the other; who needs
it meanwhile takes those that nobody has begun with, and waits for the rest.
"""

import fcntl
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Set by `./dev deviceless`, whose environment has everything: there, what is missing is an error.
REQUIRED = os.environ.get("OPTAX_LAMBLION_DEVICELESS") == "required"
# A package for each part: the plugin with XLA and Mosaic, assembler and disassembler, Triton.
_NEEDED = ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13", "triton", "jax_triton")


def need_compilers():
    """Skips the test, or fails it, where there are no compilers for GPUs."""
    if missing := [name for name in _NEEDED if not _installed(name)]:
        message = f"{' and '.join(missing)} missing; `./dev deviceless` installs what it needs"
        pytest.fail(message) if REQUIRED else pytest.skip(message)


def _installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent
        return False


def folder(config, tmp_path_factory):
    """A folder that all processes of a run of pytest share."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist: every process has a folder in this one.
    return base.parent if hasattr(config, "workerinput") else base


def results(command, parts, path):
    """What all parts came to, by name: JSON objects put together.

    Args:
      command: Arguments of Python. Those of a part follow: the file that it is to write, and the
        part's names.
      parts: Lists of names.
      path: How the files begin that the parts write.
    """
    files = [path.with_name(f"{path.name}-{i}.json") for i in range(len(parts))]
    for wait in (False, True):
        for names, file in zip(parts, files, strict=True):
            _do(command, names, file, wait)
    return {name: x for file in files for name, x in json.loads(file.read_text()).items()}


def _do(command, names, file, wait):
    """Does a part, if nobody has; if somebody is about it, waits for that or leaves it."""
    with file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return
        if not file.exists():
            arguments = [sys.executable, "-W", "error", *command, file, *names]
            done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                words = " ".join(command)
                pytest.fail(f"`{words}` failed:\n{done.stderr[-6000:]}", pytrace=False)
