"""The comparison of kept and fresh outputs notices what is out of date, and nothing else."""

import base64
import copy
import io
import itertools
import pathlib

import pytest
from nbformat import v4
from PIL import Image

from tests.notebooks.comparing import (
    EXACT,
    UNLIKE,
    Close,
    SameKind,
    differences,
    distance,
    is_blank,
    text_differs,
)
from tests.notebooks.executing import NAMES, code_cells, complaints, picture, read

TABLE = "<table><tr><td>lion8bit</td><td>1.02</td></tr></table>"


@pytest.mark.parametrize(
    ("kept", "fresh", "tolerance"),
    [
        ("loss 0.25", "loss  0.25", EXACT),
        ("1,234 bytes", "1234 bytes", EXACT),
        ("loss 0.250", "loss 0.259", Close("", absolute=0.01)),
        ("loss -2.00e-3", "loss -2.10e-3", Close("", relative=0.1)),
        ("loss 0.250", "loss 0.251", Close("")),  # the last digit
        (TABLE, TABLE.replace("<td>", '<td style="width: 7px">'), EXACT),
    ],
)
def test_what_says_the_same_is_the_same(kept, fresh, tolerance):
    assert text_differs(kept, fresh, tolerance) is None


@pytest.mark.parametrize(
    ("kept", "fresh", "tolerance"),
    [
        ("loss 0.250", "loss 0.251", EXACT),
        ("loss 0.250", "loss 0.270", Close("", absolute=0.01)),
        ("loss 0.250", "loss -0.250", Close("", relative=0.1)),
        ("loss 0.25", "accuracy 0.25", Close("", relative=1)),
        ("lion8bit", "lion32bit", Close("", relative=1)),
        ("True", "False", Close("", relative=1)),
        ("1.0", "1.0 2.0", Close("", relative=1)),
        (TABLE, TABLE.replace("1.02", "1.03"), EXACT),
    ],
)
def test_what_says_something_else_is_not(kept, fresh, tolerance):
    assert text_differs(kept, fresh, tolerance)


def notebook(*outputs):
    return v4.new_notebook(cells=[v4.new_code_cell(id="it", outputs=list(outputs))])


def test_another_kind_of_output_is_noticed_whatever_it_says():
    table = v4.new_output("display_data", {"text/plain": "1", "text/html": "<p>1"})
    plain = v4.new_output("display_data", {"text/plain": "1"})
    for kept, fresh in itertools.permutations(([table], [plain], [], [plain, plain]), 2):
        lines = differences(notebook(*kept), notebook(*fresh), {"it": SameKind("")})
        assert len(lines) == 1 and lines[0].startswith("it: ")


def test_of_the_same_kind_only_the_kind_counts():
    kept, fresh = (v4.new_output("stream", text=f"JAX {x}") for x in ("1.2", "1.3 on a GPU"))
    assert differences(notebook(kept), notebook(fresh), {"it": SameKind("")}) == []
    assert differences(notebook(kept), notebook(fresh), {})


PNGS = {
    f"{name}:{cell.id}": output.data["image/png"]
    for name in NAMES
    for cell in code_cells(read(name))
    for output in cell.outputs
    if "image/png" in output.get("data", {})
}


def test_pictures_of_two_cells_are_unlike():
    for (one, a), (other, b) in itertools.combinations(PNGS.items(), 2):
        assert distance(picture(a), picture(b)) > 1.25 * UNLIKE, (one, other)


def test_a_picture_that_is_moved_by_a_pixel_is_alike():
    """As by another version of the library that draws it."""
    for name, png in PNGS.items():
        moved = Image.new("RGB", picture(png).size, "white")
        moved.paste(picture(png), (1, 1))
        assert distance(picture(png), moved) < UNLIKE, name


def test_a_picture_that_was_swapped_is_noticed():
    name = NAMES[0]
    fresh, kept = read(name), read(name)
    (output,) = (
        x
        for cell in kept.cells
        for x in cell.get("outputs", [])
        if "image/png" in x.get("data", {})
    )
    output.data["image/png"] = PNGS["03_paging_and_memory:draw-cost"]
    assert len(differences(kept, fresh, {})) == 1
    assert differences(fresh, copy.deepcopy(fresh), {}) == []


def test_an_empty_picture_is_blank():
    file = io.BytesIO()
    Image.new("RGB", (800, 300), "white").save(file, "png")
    assert is_blank(base64.b64encode(file.getvalue()))


@pytest.mark.parametrize(
    "output",
    [
        v4.new_output("stream", name="stderr", text="UserWarning: something"),
        v4.new_output("stream", text=f"saved to {pathlib.Path.home()}/x"),
        v4.new_output("display_data", {"text/plain": "<object at 0x7f3b>"}),
    ],
)
def test_warnings_paths_and_addresses_are_complained_about(output):
    assert len(complaints(notebook(output))) == 1
