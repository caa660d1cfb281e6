"""Whatever is said to install something works today, when no index has this package."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from optax_lamblion._checkpoints.bitsandbytes import files
from optax_lamblion.cli import _errors

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
KNOWN = {
    canonicalize_name(Requirement(line).name)
    for lines in [PROJECT["dependencies"], *EXTRAS.values()]
    for line in lines
} - {"optax-lamblion"} | {"netket"}  # whose script is in tests/integrations
SOURCES = [p for x in ("optax_lamblion", "pallas_kernels") for p in (ROOT / x).rglob("*.py")]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def commands(text):
    """What follows `pip install` in a text."""
    return re.findall(r"pip install ((?:'[^']*'|[\w.\[\],=-]+)(?: [a-z][\w-]*)*)", text)


def works(command):
    """Whether it installs what is known, by its own name or from a checkout."""
    for word in command.replace("'", "").split():
        extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
        if extras:
            if not set((extras[1] or "demo").split(",")) <= EXTRAS.keys():
                return False
        elif canonicalize_name(Requirement(word).name) not in KNOWN:
            return False
    return True


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_text_names_what_no_index_has(path):
    text = path.read_text(encoding="utf-8")
    assert "optax-lamblion[" not in text
    written = [x for x in commands(text) if x != "jax[tpu]"]
    assert [x for x in written if not works(x)] == []


def required():
    """What commands say that they need: the dicts that `require` is called with."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                given = node.args[0]
                yield ast.literal_eval(named[given.id] if isinstance(given, ast.Name) else given)


def test_what_commands_need_is_named_as_the_index_has_it():
    found = list(required())
    assert len(found) >= 2
    for modules in found:
        missing = {f"no_such_module_{i}": name for i, name in enumerate(modules.values())}
        with pytest.raises(_errors.CommandError) as caught:
            _errors.require(missing)
        (command,) = commands(str(caught.value))
        assert command.split() == list(modules.values()) and works(command)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_files_need_is_named_as_the_index_has_it(tmp_path, monkeypatch, suffix):
    for module in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        files.write(tmp_path / f"x{suffix}", {"state": {}, "param_groups": []})
    (command,) = commands(str(caught.value))
    assert works(command)


def test_the_judge_knows_what_would_not_work():
    assert commands("Type: pip install flax rich") == ["flax rich"]
    assert works("'.[demo,gpu]'") and works(".") and works("orbax-checkpoint")
    assert not works("'.[torchy]'") and not works("'optax-lamblion[torch]'")
