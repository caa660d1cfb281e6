"""What the tests here share: what became of all checks of a target, done once."""

import itertools
import pathlib

import pytest

from tests.deviceless import sharing
from tests.emulated import checks

PARTS = {"h200": 8, "a100": 2, "b200": 3}
"""Processes for each target: enough to share the work. Each takes a minute at most."""

_COMMAND = "-m", "tests.emulated"

# The other modules have no examples to test, and need not be imported where nothing runs.
collect_ignore = [
    path.name for path in pathlib.Path(__file__).parent.glob("*.py") if path.name[:5] != "test_"
]


@pytest.fixture(scope="session")
def seen_of(request, tmp_path_factory):
    """A function: `seen_of("h200")` is what was seen in each check, by its name and by end."""
    sharing.need_compilers()
    folder, loaded = sharing.folder(request.config, tmp_path_factory), {}

    def seen_of(target):
        if target not in loaded:
            parts = _parts(checks.of(target), PARTS[target])
            command, path = (*_COMMAND, target, "--out"), folder / f"emulated-{target}"
            loaded[target] = sharing.results(command, parts, path)
        return loaded[target]

    return seen_of


@pytest.fixture(scope="session")
def seen_in_long(request, tmp_path_factory):
    """What was seen in the checks that are not of every day, as of `seen_of`."""
    sharing.need_compilers()
    folder = sharing.folder(request.config, tmp_path_factory)
    parts = _parts(checks.long(), 2)
    return sharing.results((*_COMMAND, "h200", "--out"), parts, folder / "emulated-long")


def _parts(names, count):
    """Names in so many lists, with those that share their kernels side by side."""
    groups = [list(group) for _, group in itertools.groupby(names, checks.program)]
    return [list(itertools.chain(*groups[i::count])) for i in range(count)]
