"""What the pages show is what happens, and they leave out no name."""

import ast
import contextlib
import json
import re
import shutil
import textwrap
import tomllib
from pathlib import Path

import jax
import pytest

import optax_lamblion
import optax_lamblion.flax
import pallas_kernels
from optax_lamblion import _implementation

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def read(path):
    return path.read_text(encoding="utf-8")


# --- Examples ------------------------------------------------------------------------------------

FENCE = re.compile(r"^( *)```(python|py)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
WITH_EXAMPLES = [page for page in PAGES if "```py" in read(page)]

# What examples find where they run.
FILES = {
    "bitsandbytes": {"optimizer.safetensors": "tests/interop/checkpoints/lion8bit.safetensors"}
}

# Pages with training loops, whose other libraries rely on what these tests forbid by default:
# schedules of Optax compute with an integer count and floats.
IN_A_USERS_SETTINGS = ("integrations", "recipes")


@contextlib.contextmanager
def settings_of_jax():
    """JAX's own rules of promotion, not the strict ones of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run_examples(page, capsys):
    """Runs the blocks of `python` on a page, one after the other, and compares what they print.

    Blocks of `py` need what is not installed here, so they need only be Python.
    """
    text, names = read(page), {}
    for found in FENCE.finditer(text):
        code = textwrap.dedent(found[3])
        program = compile(code, f"{page.name}:{text[: found.start()].count('\n') + 1}", "exec")
        if found[2] == "py":
            continue
        exec(program, names)
        printed = iter(capsys.readouterr().out.splitlines())
        for line, comment in re.findall(r"^ *(print\(.*\))  # (.*)$", code, re.MULTILINE):
            assert comment in printed, line  # this line, or one further on
    return names


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_no_block_of_python_is_overlooked(page):
    assert len(FENCE.findall(read(page))) == read(page).count("```py")


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_and_print_what_it_says(page, capsys, tmp_path, monkeypatch):
    for name, source in FILES.get(page.stem, {}).items():
        shutil.copy(ROOT / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with settings_of_jax() if page.stem in IN_A_USERS_SETTINGS else contextlib.nullcontext():
        names = run_examples(page, capsys)
    if page.stem == "meshes":  # on all devices that there are: eight, in these tests
        assert names["mesh"].size == 8
        assert names["opt_state"].mu["w"].sharding.shard_shape((4096, 1024)) == (512, 1024)


# --- Names ---------------------------------------------------------------------------------------

DOCUMENTS = re.compile(
    r"^\.\. (?:autofunction|autoclass|py:data):: (\w+)(?:\(.*\))?$", re.MULTILINE
)


def documented(module):
    """The names that API pages document of a module, as often as they do."""
    names = []
    for page in DOCS.glob("api/*.md"):
        parts = re.split(r"^\.\. currentmodule:: ([\w.]+)$", read(page), flags=re.MULTILINE)
        for current, text in zip(parts[1::2], parts[2::2], strict=True):
            names += DOCUMENTS.findall(text) if current == module else []
    return names


MODULES = [optax_lamblion, optax_lamblion.flax, pallas_kernels]


@pytest.mark.parametrize("module", MODULES, ids=lambda x: x.__name__)
def test_every_public_name_is_on_one_api_page(module):
    assert sorted(documented(module.__name__)) == sorted(module.__all__)


def test_constants_are_printed_as_they_are():
    text = read(DOCS / "api/pallas_kernels.md")
    printed = dict(re.findall(r"^\.\. py:data:: (\w+)\n   :value: (.+)$", text, re.MULTILINE))
    assert printed
    for name, value in printed.items():
        assert ast.literal_eval(value) == getattr(pallas_kernels, name)


def test_every_api_page_is_in_the_table_of_contents():
    pages = {f"api/{page.stem}" for page in DOCS.glob("api/*.md")}
    assert pages == set(re.findall(r"^api/\w+$", read(DOCS / "index.md"), re.MULTILINE))


# --- Links ---------------------------------------------------------------------------------------


def texts():
    yield from ((page, read(page)) for page in DOCS.rglob("*.md") if "_build" not in page.parts)
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(read(path))["cells"]
        yield path, "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_links_lead_to_files_where_they_stand():
    """On GitHub, that is; on the site, Sphinx sees to it."""
    links = [
        (page, link)
        for page, text in texts()
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
        if not re.match(r"https?:", link)
    ]
    assert len(links) > 20
    assert [f"{page}: {x}" for page, x in links if not (page.parent / x).exists()] == []


# --- Installing ----------------------------------------------------------------------------------


def test_every_extra_is_on_the_page_about_installing():
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    page, _, _ = read(DOCS / "install.md").partition("\n## ")
    table = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(table))) == sorted(extras)


def test_what_info_prints_is_as_shown():
    """The tests run on a CPU, as the page does."""
    block = re.search(r"^optimizer +implementation.*?\n```", read(DOCS / "install.md"), re.M | re.S)
    rows = []
    for line in block[0].splitlines()[2:-1]:
        name, implementation, why = (line[a:b].strip() for a, b in [(0, 16), (16, 32), (32, None)])
        if name:
            rows.append((name, implementation, why))
        else:  # the line before goes on
            rows[-1] = (*rows[-1][:2], f"{rows[-1][2]} {why}")
    assert len(rows) > 2
    assert rows == _implementation.explain([name for name, _, _ in rows])
