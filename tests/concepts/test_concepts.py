import re
import xml.etree.ElementTree as ET

import pytest

from tests.concepts.pictures import DOCS, PICTURES
from tests.concepts.svg import WIDTH

PAGE = (DOCS / "concepts.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"
FILES = pytest.mark.parametrize("name", PICTURES)


def drawn(name):
    return (DOCS / name).read_text(encoding="utf-8")


@FILES
def test_a_picture_is_what_the_library_does_now(name):
    """Codes and levels in it are computed; after a change: `python -m tests.concepts.pictures`."""
    assert drawn(name) == PICTURES[name]().svg()


@FILES
def test_a_picture_can_be_read_aloud(name):
    root = ET.fromstring(drawn(name))
    assert root.find(f"{SVG}title").text and root.find(f"{SVG}desc").text
    alt = re.search(rf"!\[([^\]]+)\]\({re.escape(name)}\)", PAGE)
    assert len(alt[1]) > 40


@FILES
def test_words_lie_within_the_sheet(name):
    """Letters of the widest of the fonts, DejaVu, are 0.55 of their size on average; bold, 0.61."""
    for text in ET.fromstring(drawn(name)).iter(f"{SVG}text"):
        kinds = set(text.get("class").split())
        size = 13 if {"small", "code"} & kinds else 15
        width = (0.61 if {"bold", "code"} & kinds else 0.55) * size * len(text.text)
        share = {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        left = float(text.get("x")) - share * width
        assert left > 0 and left + width < WIDTH, text.text


@FILES
def test_every_colour_of_a_picture_is_defined_in_both_modes(name):
    text = drawn(name)
    light, dark = text.partition("@media (prefers-color-scheme: dark)")[::2]
    dark = dark.partition("</style>")[0]
    light = light.partition("<style>")[2]
    used = set(re.findall(r'class="(?:fill |line )(\w+)"', text))
    used |= set(re.findall(r'<text class="(\w+)', text))
    for colours in (light, dark):
        assert used <= set(re.findall(r"\.(\w+) \{ --c:", colours))
