"""What the tests here share: the facts of all cases of a target, compiled once.

Processes compile a few cases of one target each (see `worker.py`). Under pytest-xdist, the first
test that needs a target has them compiled one after the other; who needs it meanwhile takes those
that nobody has begun with, and waits for the rest.
"""

import fcntl
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.deviceless import cases, worker

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Set by `./dev deviceless`, whose environment has everything: there, what is missing is an error.
REQUIRED = os.environ.get("OPTAX_LAMBLION_DEVICELESS") == "required"
CASES_AT_ONCE = 40
"""Of one process: few enough to share the work, and enough for kernels to be compiled once."""

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
            loaded[target] = Results(_compiled(target, folder))
        return loaded[target]

    return facts_for


# A package for each part: the plugin with XLA and Mosaic, the assembler with its disassembler.
_NEEDED = ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13")


def _installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent
        return False


def _compiled(target, folder):
    """The results of all cases of a target."""
    worker.register()
    names = cases.names(target)
    count = -(-len(names) // CASES_AT_ONCE)
    # Every so many: neighbours take about as long.
    parts = [(names[i::count], folder / f"deviceless-{target}-{i}.json") for i in range(count)]
    for wait in (False, True):
        for part, path in parts:
            _compile(target, part, path, wait)
    return {name: x for _, path in parts for name, x in json.loads(path.read_text()).items()}


def _compile(target, names, path, wait):
    """Compiles cases, if nobody has; if somebody is about it, waits for that or leaves it."""
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return
        if not path.exists():
            command = [sys.executable, "-W", "error", "-m", "tests.deviceless.worker", target, path]
            done = subprocess.run([*command, *names], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"Compiling for {target} failed:\n{done.stderr[-6000:]}", pytrace=False)
