"""Every notebook is executed once, however many tests and processes look at the result."""

import fcntl
import os

import nbformat
import pytest

from tests.notebooks.executing import execute, read


# As a parameter of the module's scope it brings the tests of one execution together.
@pytest.fixture(scope="module")
def executed(request, tmp_path_factory):
    """The notebook with fresh outputs, executed by whoever comes first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which all workers share
    path = folder / f"{request.param}.ipynb"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            notebook = execute(read(request.param))
            nbformat.write(notebook, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)
