"""How to cite: one version, and the same papers in `CITATION.cff` and on the page."""

import re
from pathlib import Path

import optax_lamblion

ROOT = Path(__file__).parents[1]
CFF = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/project/citation.md").read_text(encoding="utf-8")


def words(text):
    """Text without the braces that keep capitals in BibTeX, and without quotation marks."""
    return re.sub(r'[{}"]', "", text)


def test_the_version_is_the_package_version():
    assert re.findall(r"^version: (.+)$", CFF, re.MULTILINE) == [optax_lamblion.__version__]
    assert re.findall(r"version = \{(.+)\}", PAGE) == [optax_lamblion.__version__]
    assert re.findall(r"__version__\)  # (.+)$", PAGE, re.M) == [optax_lamblion.__version__]


def test_file_and_page_cite_the_same_papers():
    """By arXiv number, with title, year and authors."""
    in_file = {}
    for entry in CFF.partition("\nreferences:\n")[2].split("  - type: conference-paper\n")[1:]:
        (number,) = re.findall(r"arXiv:([\d.]+)", entry)
        (title,) = re.findall(r"^    title: (.+)$", entry, re.MULTILINE)
        (year,) = re.findall(r"^    year: (\d+)$", entry, re.MULTILINE)
        names = re.findall(r"family-names: ([\w-]+), given-names: ([\w. -]+)\}", entry)
        assert f"https://arxiv.org/abs/{number}\n" in entry
        in_file[number] = words(title), year, [f"{last}, {first}" for last, first in names]
    on_page = {}
    for entry in re.findall(r"@inproceedings\{(.*?)\n\}\n", PAGE, re.DOTALL):
        (number,) = re.findall(r"eprint += \{(.+)\}", entry)
        (title,) = re.findall(r" title += \{(.+)\},", entry)
        (year,) = re.findall(r"year += \{(\d+)\}", entry)
        (authors,) = re.findall(r"author += \{(.*?)\},\n", entry, re.DOTALL)
        on_page[number] = words(title), year, " ".join(authors.split()).split(" and ")
    assert len(in_file) == 4
    assert in_file == on_page


def test_the_paper_that_a_docstring_refers_to_first_is_cited():
    for source in (optax_lamblion.lion, optax_lamblion.lamb, optax_lamblion.adamw):
        number = re.search(r"arxiv\.org/abs/([\d.]+)>", source.__doc__)[1]
        assert f"arXiv:{number}" in CFF
