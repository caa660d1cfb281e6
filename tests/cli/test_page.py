"""`docs/cli.md`: every ```console block is run, at 80 columns, and prints what the page says."""

import pathlib
import re
import shlex
import shutil

import pytest

from tests.interop import loading

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "cli.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n\$ optax-lamblion (.*?)\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """What the page's commands read: its own TOML and JSON, and a checkpoint of bitsandbytes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    for name, kind in {"options.toml": "toml", "config.json": "json"}.items():
        (content,) = re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.M | re.S)
        pathlib.Path(name).write_text(content, encoding="utf-8")
    shutil.copy(loading.FOLDER / "lion8bit.safetensors", "optimizer.safetensors")
    pathlib.Path("names.txt").write_text("\n".join(loading.NAMES["lion8bit"]), encoding="utf-8")


def test_every_block_is_found():
    assert len(BLOCKS) == TEXT.count("```console") >= 7


@pytest.mark.parametrize(("command", "said"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_a_command_prints_what_the_page_says(run_cli, files, command, said):
    _, out, err = run_cli(*shlex.split(command))
    assert (out + err).splitlines() == said.splitlines()
    assert all(len(line) <= 80 for line in out.splitlines())
