"""What the tests here share: the facts of all cases of a target, compiled once.

Processes compile a few cases of one target each (see `worker.py`, and `sharing.py`).
"""

import pathlib

import pytest

from tests.deviceless import cases, sharing, worker

CASES_AT_ONCE = 40
"""Of one process: few enough to share the work, and enough for kernels to be compiled once."""

# The other modules have no examples to test, and need not be imported where nothing runs.
collect_ignore = [
    path.name for path in pathlib.Path(__file__).parent.glob("*.py") if path.name[:5] != "test_"
] + ["throughput"]


class Results:
    """What became of the cases of one target, by name.

    Those that are long are compiled with the first test that is marked so.
    """

    of_long = False
    """Whether the test that is run is marked as long."""

    def __init__(self, target, folder):
        self._target, self._folder = target, folder
        self._results, self._long = _compiled(target, folder), None

    def __getitem__(self, case):
        """`{"facts": ..., "kernels": ..., "seconds": ...}`; the test fails if the case did."""
        results = self._all()
        if case not in results:
            raise KeyError(f"`{case}` is no case for {self._target}, or not in `daily.py`")
        result = results[case]
        if "error" in result:
            pytest.fail(f"The case `{case}` failed:\n{result['error']}", pytrace=False)
        return result

    def errors(self):
        """Tracebacks of the cases that failed, by name."""
        return {name: x["error"] for name, x in self._all().items() if "error" in x}

    def kernels(self):
        """`(case, kernel)` for every kernel of every case."""
        for name, result in self._all().items():
            for kernel in result.get("kernels", {}).values():
                yield name, kernel

    def _all(self):
        """Those of every day, and for a long test the long ones."""
        if not self.of_long:
            return self._results
        if self._long is None:
            self._long = _compiled(self._target, self._folder, long=True)
        return self._results | self._long


@pytest.fixture(autouse=True)
def _long(request, monkeypatch):
    """Only a long test gets the results of long cases, which are not compiled for others."""
    of_long = request.node.get_closest_marker("long") is not None
    monkeypatch.setattr(Results, "of_long", of_long)


@pytest.fixture(scope="session")
def facts_for(request, tmp_path_factory):
    """A function: `facts_for("h200")` is the `Results` of all cases that are meant for it."""
    sharing.need_compilers()
    folder, loaded = sharing.folder(request.config, tmp_path_factory), {}

    def facts_for(target):
        if target not in loaded:
            loaded[target] = Results(target, folder)
        return loaded[target]

    return facts_for


def _compiled(target, folder, long=False):
    """The results of all cases of a target that are long, or of those that are not."""
    worker.register()
    names = cases.names(target, long)
    count = -(-len(names) // CASES_AT_ONCE)
    # Every so many: neighbours take about as long.
    parts = [names[i::count] for i in range(count)]
    command = ("-m", "tests.deviceless.worker", target)
    return sharing.results(command, parts, folder / f"deviceless-{target}{'-long' * long}")
