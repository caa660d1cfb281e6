"""Where tables stand on the page about kernels. Needs no compiler."""

import pytest

from tests.deviceless import report

PAGE = (
    "a\n\n<!-- table b -->\n\n| b |\n\n<!-- end -->\n\n<!-- table c -->\n\n| c |\n\n<!-- end -->\n"
)


def test_a_table_is_replaced_and_nothing_else():
    assert report.read(PAGE, "b") == ["| b |"]
    page = report.write(PAGE, "b", "| d |\n| e |")
    assert page == PAGE.replace("| b |", "| d |\n| e |")
    assert report.read(page, "c") == ["| c |"]


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(SystemExit, match="no place for the table `d`"):
        report.write(PAGE, "d", "| d |")


def test_a_table_that_nobody_makes_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which `main` sets; this takes it back
    with pytest.raises(SystemExit):
        report.main(["tpu"])
    assert "there is no table tpu; there are a100, h200" in capsys.readouterr().err
