"""Puts figures into pages: `python -m benchmarks.pages --write`; without it, says what is old.

A page marks the place of a figure, a word or a whole table, by two comments:

    <!-- figure steps-cpu.lion8bit -->0.48<!-- /figure -->

What stands between them is made by the function of that name, from a record in `results`. Building
the site and the tests fail where a page shows anything else.
"""

import argparse
import pathlib
import re
import sys

from benchmarks import guard, sources
from benchmarks.batches import report as batches
from benchmarks.bfloat16 import report as bfloat16
from benchmarks.finetune import report as finetune
from benchmarks.growth import figures as growth
from benchmarks.learning_rates import report as learning_rates
from benchmarks.quality import report as quality
from benchmarks.steps import figures as steps

ROOT = pathlib.Path(__file__).parents[1]
_PLACE = re.compile(r"(<!-- figure (?P<name>[^ ]+) -->)(.*?)(<!-- /figure -->)", re.DOTALL)


def figures():
    """Every figure by name: a function that returns its Markdown."""
    makers = {}
    for kind in _KINDS:
        makers |= kind.FIGURES
    return makers


_KINDS = (
    sources, guard, steps, growth, quality, batches, finetune, learning_rates, bfloat16,
)  # fmt: skip


def pages():
    """The files that may show figures."""
    docs = ROOT / "docs"
    return [ROOT / "README.md", *sorted(x for x in docs.rglob("*.md") if "_build" not in x.parts)]


def current(text, makers):
    """The text of a page with the figures of now.

    Raises:
      KeyError: There is no figure of a name that the page has.
      records.Incomplete: A record is not there, or does not say where it comes from.
    """

    def shown(found):
        name = found["name"]
        if name not in makers:
            raise KeyError(f"There is no figure {name!r}. There are: {', '.join(sorted(makers))}.")
        figure = makers[name]()
        return f"{found[1]}{_in_lines(figure)}{found[4]}"

    return _PLACE.sub(shown, text)


def _in_lines(figure):
    """A table stands in lines of its own, a word stays in its line."""
    return f"\n\n{figure}\n\n" if "\n" in figure or figure.startswith(("|", "*", "!")) else figure


def old():
    """The pages that do not show the figures of now, with the text that they should have."""
    makers = figures()
    texts = {path: path.read_text(encoding="utf-8") for path in pages()}
    now = {path: current(text, makers) for path, text in texts.items()}
    return {path: now[path] for path in texts if now[path] != texts[path]}


def main(arguments=None):
    """Writes the figures, or says which pages are old; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="write them into the pages")
    args = parser.parse_args(arguments)
    stale = old()
    for path, text in stale.items():
        if args.write:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'written' if args.write else 'shows old figures'}")
    return int(bool(stale) and not args.write)


if __name__ == "__main__":
    sys.exit(main())
