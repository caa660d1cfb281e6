"""Notebooks as they are kept in git: valid, with outputs, and without traces of the machine."""

import ast
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import optax_lamblion
import optax_lamblion.flax
import pallas_kernels
from tests.notebooks.comparing import is_blank
from tests.notebooks.executing import FOLDER, NAMES, code_cells, complaints, read

MODULES = (optax_lamblion, optax_lamblion.flax, pallas_kernels)
PUBLIC = {module.__name__: set(module.__all__) for module in MODULES}

every_notebook = pytest.mark.parametrize("name", NAMES)


def python(notebook):
    """Its code cells as plain Python: `%pip` is a call."""
    transform = TransformerManager().transform_cell
    return [transform(cell.source) for cell in code_cells(notebook)]


def pictures(cell):
    return [x.data["image/png"] for x in cell.outputs if "image/png" in x.get("data", {})]


@every_notebook
def test_it_is_valid_and_asks_for_no_special_kernel(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}  # no version, which would change


@every_notebook
def test_its_cells_have_words_for_ids(name):
    """Jupyter's own are random, and change when a cell is copied."""
    for cell in read(name).cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)


@every_notebook
def test_its_cells_are_numbered_as_executed_once(name):
    counts = [cell.execution_count for cell in code_cells(read(name))]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_nothing_is_complained_about_in_kept_outputs(name):
    assert complaints(read(name)) == []


@every_notebook
def test_only_cells_that_draw_or_set_looks_are_folded(name):
    for cell in read(name).cells:
        draws = cell.cell_type == "code" and "plt.show()" in cell.source
        if draws or cell.id == "style":
            assert cell.metadata.jupyter == {"source_hidden": True}, cell.id  # JupyterLab
            assert cell.metadata.tags == ["hide-input"], cell.id  # the site
        else:
            assert not cell.metadata, cell.id


@every_notebook
def test_every_picture_is_drawn_once_with_words_for_it(name):
    drawn = [cell for cell in code_cells(read(name)) if "plt.show()" in cell.source]
    assert drawn
    for cell in code_cells(read(name)):
        assert len(pictures(cell)) == (cell in drawn), cell.id
        assert not any(map(is_blank, pictures(cell))), cell.id
    for cell in drawn:
        assert len(cell.metadata.mystnb.image.alt) > 40, cell.id


def test_notebooks_stay_small():
    """Their outputs are in the history of the repository for good."""
    assert sum((FOLDER / f"{name}.ipynb").stat().st_size for name in NAMES) < 1_500_000


@every_notebook
def test_it_begins_with_its_only_title_and_what_one_learns(name):
    text = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    assert text[0].startswith("# ") and "ou'll " in text[0] and "\n- " in text[0]
    assert len(re.findall(r"^# ", "\n".join(text), re.MULTILINE)) == 1


@every_notebook
def test_a_result_is_shown_early(name):
    """A table or a picture, three cells after the setup at the latest."""
    ids = [cell.id for cell in code_cells(read(name))]
    cells = code_cells(read(name))[ids.index("style") + 1 :][:3]
    assert any(x.output_type != "stream" for cell in cells for x in cell.outputs)


@every_notebook
def test_it_imports_public_names_only(name):
    for cell in python(read(name)):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name.split(".")[0] not in PUBLIC, alias.name
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PUBLIC:
                assert {alias.name for alias in node.names} <= PUBLIC[node.module]


@pytest.mark.parametrize("cell_id", ["setup", "install", "style"])
def test_notebooks_share_how_they_begin(cell_id):
    sources = {cell.source for name in NAMES for cell in read(name).cells if cell.id == cell_id}
    assert len(sources) == 1
