"""What the first cell of a notebook installs: with a checkout around it, a wheel, or nothing."""

import importlib.util
import shutil

import pytest

from tests.notebooks.executing import NAMES, code_cells, read
from tests.notebooks.test_stored import python


class Shell:
    """Stands for IPython, and remembers what was to be installed."""

    def __init__(self):
        self.ran = []

    def run_line_magic(self, magic, line):
        self.ran.append((magic, line))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs the first cell in a folder; returns what it asks of pip, with its names filled in."""

    def run(*, importable=False, gpu=False, source="", folder=tmp_path):
        monkeypatch.chdir(folder)
        spec = object() if importable else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
        monkeypatch.setattr(shutil, "which", lambda _: "nvidia-smi" if gpu else None)
        cell = python(read(NAMES[0]))[0]
        assert 'SOURCE = ""' in cell
        shell, names = Shell(), {}
        names["get_ipython"] = lambda: shell
        exec(cell.replace('SOURCE = ""', f"SOURCE = {source!r}"), names)
        return [(magic, line.format(**names)) for magic, line in shell.ran]

    return run


def test_it_comes_first():
    for name in NAMES:
        assert code_cells(read(name))[0].id == "install"


def test_nothing_is_installed_that_is_there(install):
    assert install(importable=True, gpu=True) == []


def test_inside_a_checkout_it_installs_that(install, tmp_path):
    (tmp_path / "optax_lamblion").mkdir()
    (tmp_path / "notebooks").mkdir()
    asked = install(folder=tmp_path / "notebooks")
    assert asked == [("pip", f'install --quiet "{tmp_path}[demo]" pandas')]


def test_elsewhere_it_installs_a_wheel_that_was_uploaded(install, tmp_path):
    wheel = tmp_path / "optax_lamblion-0.1.0-py3-none-any.whl"
    wheel.touch()
    asked = install(gpu=True)
    assert asked == [("pip", f'install --quiet "{wheel}[demo,gpu]" pandas')]


@pytest.mark.parametrize(
    ("source", "requirement"),
    [
        ("../optax-lamblion", "../optax-lamblion[demo]"),
        ("git+https://example.com/x.git", "optax-lamblion[demo] @ git+https://example.com/x.git"),
    ],
)
def test_a_source_may_be_named(install, source, requirement):
    assert install(source=source) == [("pip", f'install --quiet "{requirement}" pandas')]


def test_with_nothing_to_install_it_says_what_to_do(install):
    with pytest.raises(RuntimeError, match="not on PyPI yet.*pip wheel --no-deps.*Or set SOURCE"):
        install()
