"""What the tests here share: what became of all checks of a target, done once."""

import collections
import itertools
import pathlib

import pytest

from pallas_kernels.triton import installed
from tests.deviceless import sharing
from tests.emulated import checks

PARTS = {"h200": 4}
"""Processes for each target: enough to share the work, of which each takes a minute at most."""
LONG_PARTS = dict.fromkeys(("h200", "triton-sm_90"), 8) | dict.fromkeys(
    ("a100", "b200", "triton-sm_80", "triton-sm_75"), 4
)

_COMMAND = "-m", "tests.emulated"

# The other modules have no examples to test, and need not be imported where nothing runs.
collect_ignore = [
    path.name for path in pathlib.Path(__file__).parent.glob("*.py") if path.name[:5] != "test_"
]


@pytest.fixture(scope="session")
def seen_of(request, tmp_path_factory):
    """A function: `seen_of("h200")` is what was seen in each check, by its name and by end."""
    return _Seen(request, tmp_path_factory, "emulated", checks.of, PARTS)


@pytest.fixture(scope="session")
def seen_in_long(request, tmp_path_factory):
    """The same of the checks that are not of every day."""
    return _Seen(request, tmp_path_factory, "emulated-long", checks.long, LONG_PARTS)


class _Seen:
    def __init__(self, request, tmp_path_factory, name, checks_of, parts):
        self._path = sharing.folder(request.config, tmp_path_factory) / name
        self._checks_of, self._parts, self._loaded = checks_of, parts, {}

    def __call__(self, target):
        need_compilers(target)
        if target not in self._loaded:
            parts = _parts(self._checks_of(target), self._parts.get(target, 1))
            path = self._path.with_name(f"{self._path.name}-{target}")
            self._loaded[target] = sharing.results((*_COMMAND, target, "--out"), parts, path)
        return self._loaded[target]


def need_compilers(target):
    """Skips the test, or fails it, where there are no compilers for a target."""
    sharing.need_compilers()
    if checks.is_triton(target) and (why := installed.why_not()):
        pytest.fail(why) if sharing.REQUIRED else pytest.skip(why)


def _parts(names, count):
    """Names in so many lists, with those that share their kernels side by side."""
    groups = collections.defaultdict(list)
    for name in names:
        groups[checks.program(name)].append(name)
    return [list(itertools.chain(*list(groups.values())[i::count])) for i in range(count)]
