"""Executes notebooks, and makes of the result what is kept in git.

Outputs are those of a CPU, whatever else a machine has, and hold nothing that changes from run to
run: no times, no paths, no addresses of objects.
"""

import base64
import io
import os
import pathlib
import sys
import tempfile
from unittest import mock

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))

# In front of the first cell: a warning that the notebook or the library causes is an error. Those
# of other packages count if they are shown: see `complaints`.
STRICT = """
import warnings
warnings.filterwarnings("error", module=r"(__main__|optax_lamblion|pallas_kernels)\\b")
"""

COLORS = 64
"""Of a picture that is kept: a plot has few, and a palette makes the file a third as large."""


def read(name):
    """A notebook as it is kept in git."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def write(name, notebook):
    """Keeps it, in the form that Jupyter writes."""
    nbformat.validate(notebook)
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def execute(notebook):
    """The notebook with fresh outputs, from a new kernel of the running interpreter."""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    with tempfile.TemporaryDirectory() as home:
        # The settings of the user are not read, and nothing is left among them.
        folders = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
        settings = dict.fromkeys(folders, home) | {"JAX_PLATFORMS": "cpu"}
        with mock.patch.dict(os.environ, settings):
            os.environ.pop("MPLBACKEND", None)  # the kernel's own backend makes the pictures
            client = NotebookClient(
                notebook,
                # Without folders to look into, `python3` is the running interpreter.
                km=AsyncKernelManager(
                    kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
                ),
                timeout=600,
                record_timing=False,
                coalesce_streams=True,
                resources={"metadata": {"path": str(FOLDER)}},
            )
            # By default, a manager that one brings along keeps its kernel.
            client.execute(cleanup_kc=True)
    del notebook.cells[0]
    _tidy(notebook)
    return notebook


def _tidy(notebook):
    """Numbers cells from 1, and stores pictures with a palette."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = _with_palette(png)
    # What a kernel says of itself is its version, which would change.
    notebook.metadata.language_info = {"name": "python"}


def _with_palette(png):
    file = io.BytesIO()
    picture(png).quantize(COLORS).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def picture(png):
    """A picture of an output."""
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


def code_cells(notebook):
    """Its cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(output):
    """What an output says, by kind: the name of a stream, or the type of a text."""
    if output.output_type == "stream":
        return {output.name: output.text}
    return {kind: x for kind, x in output.get("data", {}).items() if kind.startswith("text/")}


def complaints(notebook):
    """What must not be in outputs that are kept: warnings, and where this machine has its files."""
    here = [str(ROOT), str(pathlib.Path.home()), sys.prefix, tempfile.gettempdir() + "/", " at 0x"]
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            for kind, text in texts(output).items():
                if kind == "stderr":
                    found.append(f"{cell.id}: {text}")
                found += [f"{cell.id}: {x!r} in an output" for x in here if x in text]
    return found
