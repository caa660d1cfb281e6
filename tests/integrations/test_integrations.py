"""The scripts in this folder, each where its library is installed."""

import pathlib
import re
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent
SCRIPTS = sorted(
    path.stem
    for path in FOLDER.glob("[!_]*.py")
    if path.stem not in ("report", "test_integrations")
)
PACKAGES = dict(
    re.findall(r"`tests\.integrations\.(\w+)` \| `(\S+)`", (FOLDER / "README.md").read_text())
)


def test_the_readme_lists_every_script():
    assert sorted(PACKAGES) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(name):
    pytest.importorskip(name, reason=f"needs `pip install {PACKAGES[name]}`")
    command = [sys.executable, "-m", f"tests.integrations.{name}"]
    done = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 bits" in done.stdout
