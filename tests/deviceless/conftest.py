"""What the tests here share: the facts of all cases of a target, compiled once.

Each target has a process of its own (see `worker.py`). Under pytest-xdist, the first test that
needs a target compiles for it, and the others wait.
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

# The other modules have no examples to test, and need not be imported where nothing runs.
collect_ignore = [
    path.name for path in pathlib.Path(__file__).parent.glob("*.py") if path.name[:5] != "test_"
]


class Results:
    """What became of the cases of one target, by name."""

    def __init__(self, results):
        self._results = results

    def __getitem__(self, case):
        """`{"facts": ..., "kernels": ..., "seconds": ...}`; the test fails if the case did."""
        result = self._results[case]
        if "error" in result:
            pytest.fail(f"The case `{case}` failed:\n{result['error']}", pytrace=False)
        return result

    def errors(self):
        """Tracebacks of the cases that failed, by name."""
        return {name: x["error"] for name, x in self._results.items() if "error" in x}

    def kernels(self):
        """`(case, kernel)` for every Mosaic kernel of every case."""
        for name, result in self._results.items():
            for kernel in result.get("kernels", {}).values():
                yield name, kernel


@pytest.fixture(scope="session")
def facts_for(request, tmp_path_factory):
    """A function: `facts_for("h200")` is the `Results` of all cases that are meant for it."""
    if missing := [name for name in _NEEDED if not _installed(name)]:
        message = f"{' and '.join(missing)} missing; `./dev deviceless` installs what it needs"
        pytest.fail(message) if REQUIRED else pytest.skip(message)
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist: every process has a folder in this
        folder = folder.parent
    loaded = {}

    def facts_for(target):
        if target not in loaded:
            loaded[target] = Results(_compiled(target, folder / f"deviceless-{target}.json"))
        return loaded[target]

    return facts_for


# A package for each part: the plugin with XLA and Mosaic, the assembler with its disassembler.
_NEEDED = ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13")


def _installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent
        return False


def _compiled(target, path):
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            command = [sys.executable, "-W", "error", "-m", "tests.deviceless.worker", target, path]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"Compiling for {target} failed:\n{done.stderr[-6000:]}", pytrace=False)
    return json.loads(path.read_text())
