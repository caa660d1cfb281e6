"""Pages show the figures of their records, and nothing that has none."""

import json

import pytest
from matplotlib.figure import Figure

from benchmarks import pages, plots, records

RECORD = {"date": "2026-12-01", "machine": "m", "versions": {"jax": "0"}, "command": "python -m x"}
RECORD |= {"results": {"x": 1}}
PLACE = "It takes <!-- figure a -->1.0<!-- /figure --> times as long."


def test_every_page_shows_the_figures_of_now():
    assert [str(path.relative_to(pages.ROOT)) for path in pages.old()] == []


def test_every_record_says_where_it_comes_from():
    for path in records.RESULTS.glob("*.json"):
        records.load(path.stem)


def test_another_figure_makes_a_page_old():
    assert pages.current(PLACE, {"a": lambda: "1.0"}) == PLACE
    assert pages.current(PLACE, {"a": lambda: "2.0"}) == PLACE.replace("1.0", "2.0")


def test_a_table_stands_in_lines_of_its_own():
    text = "<!-- figure a --><!-- /figure -->"
    once = pages.current(text, {"a": lambda: "| x |"})
    assert once == "<!-- figure a -->\n\n| x |\n\n<!-- /figure -->"
    assert pages.current(once, {"a": lambda: "| x |"}) == once


def test_a_figure_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="There is no figure 'a'"):
        pages.current(PLACE, {"b": str})


@pytest.mark.parametrize("key", RECORD)
def test_a_record_without_its_source_is_refused(key, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    (tmp_path / "r.json").write_text(json.dumps(RECORD | {key: None}))
    with pytest.raises(records.Incomplete, match=key):
        records.load("r")


def test_a_record_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    with pytest.raises(records.Incomplete, match=r"no benchmarks/results/r\.json"):
        records.load("r")


def test_a_plot_of_another_record_is_refused(tmp_path):
    path = tmp_path / "plot.png"
    plots.save(Figure, path, RECORD)
    assert plots.shown(path, "what it shows", RECORD) == "![what it shows](plot.png)"
    with pytest.raises(ValueError, match="python -m x --draw"):
        plots.shown(path, "what it shows", RECORD | {"results": {"x": 2}})
