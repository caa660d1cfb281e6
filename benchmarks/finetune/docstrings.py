"""The task: which library a function belongs to, by the first sentence of its docstring.

Sentences are read from the sources of the installed libraries, without importing them. Files are
held out as a whole. A sentence that occurs twice counts once, even if signs and digits differ. One
that two libraries have, or that names a library, is left out.
"""

import ast
import importlib.util
import pathlib
import re
import sysconfig
import zlib
from typing import NamedTuple

import numpy as np

LIBRARIES = ("jax", "matplotlib", "numpy", "pandas", "scipy", "sklearn", "python")
"""The classes; the last is Python's standard library."""
TRAINED, HELD_OUT = 352, 100
"""How many sentences of every library are learned from, and are held out."""
_NAMES = re.compile(r"jax|matplotlib|pyplot|numpy|\bnp\b|pandas|scipy|sklearn|scikit|python", re.I)
_SKIPPED = {"test", "tests", "testing", "site-packages", "_vendor", "externals"}
"""Folders of tests, and of what belongs to other libraries."""
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)|.+")


class Examples(NamedTuple):
    """Sentences and the numbers of their libraries."""

    sentences: list
    labels: np.ndarray


def examples():
    """What to train on, and what is held out: as many sentences of every library."""
    found = [sentences(_root(library)) for library in LIBRARIES]
    shared = _twice(found)
    train, held_out = [], []
    for label, library in enumerate(found):
        rows = [row for key, row in library.items() if key not in shared]
        for part, held, count in ((train, False, TRAINED), (held_out, True, HELD_OUT)):
            chosen = [text for text, in_held_out in rows if in_held_out == held]
            if len(chosen) < count:
                raise ValueError(
                    f"{LIBRARIES[label]} has {len(chosen)} sentences of {count}. Install another."
                )
            order = np.random.default_rng(0).permutation(len(chosen))[:count]
            part += [(chosen[i], label) for i in order]
    return _as_examples(train), _as_examples(held_out)


def _as_examples(rows):
    texts, labels = zip(*rows, strict=True)
    return Examples(list(texts), np.array(labels, np.int32))


def _twice(found):
    """The sentences that several libraries have."""
    seen, twice = set(), set()
    for library in found:
        twice |= seen & library.keys()
        seen |= library.keys()
    return twice


def sentences(root):
    """`{sentence without its signs: (sentence, whether its file is held out)}` of a folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _SKIPPED & set(name.parts[:-1]):
            continue
        held_out = zlib.crc32(name.as_posix().encode()) % 5 == 0
        for text in _first_sentences(path):
            if len(text.split()) > 3 and not _NAMES.search(text):
                found.setdefault(re.sub("[^a-z]+", " ", text.lower()).strip(), (text, held_out))
    return found


def _first_sentences(path):
    """Of the docstrings of public functions and methods."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # a template
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            if text := _SENTENCE.match(" ".join(paragraph.split())):
                yield text[0]


def _root(library):
    if library == "python":
        return pathlib.Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(library)
    if spec is None:
        raise ModuleNotFoundError(f"The task needs the docstrings of {library}: pip install it.")
    return pathlib.Path(spec.submodule_search_locations[0])
