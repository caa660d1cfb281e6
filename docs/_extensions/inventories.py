"""Links to the documentation of other projects, without asking their sites.

`sphinx.ext.intersphinx` takes the names of a project from a file that its site has. Building would
then need a network, and change when other sites do. So the few names that we use are written down
beside this file, and this makes the files of them. A name that is not there fails the build.
"""

import re
import tomllib
import zlib
from pathlib import Path

from sphinx.domains.python import PyXRefRole

NAMES = Path(__file__).with_suffix(".toml")
SHORT = {"jnp": "jax.numpy", "lax": "jax.lax", "nnx": "flax.nnx", "np": "numpy"}
_HEADER = b"# Sphinx inventory version 2\n# Project: %s\n# Version: \n# The rest is zlib.\n"


def write_inventories(folder):
    """Writes a file for each project into a folder, and says where: an `intersphinx_mapping`."""
    projects = tomllib.loads(NAMES.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, pages in projects.items():
        url = pages.pop("url")
        # As a class, a name is found by roles for anything and by those for types.
        lines = [
            f"{name} py:class 1 {page.replace('$', name)} -\n"
            for page, names in pages.items()
            for name in names
        ]
        file = folder / f"{project}.inv"
        packed = zlib.compress("".join(lines).encode())
        file.write_bytes(_HEADER % project.encode() + packed)
        mapping[project] = (url, str(file))
    return mapping


class Backticks(PyXRefRole):
    """The default role, for what docstrings have in backticks: a name, or just code."""

    def process_link(self, env, refnode, has_explicit_title, title, target):
        """Says where the name is used. `.pt` keeps its dot, by which Sphinx would search."""
        super().process_link(env, refnode, True, title, target)
        first, dot, rest = target.partition(".")
        return title, f"{SHORT.get(first, first)}{dot}{rest}"


def is_foreign(target):
    """Whether something in backticks is a name of a project whose names are written down."""
    return re.fullmatch(r"(flax|jax|numpy|optax)(\.\w+)+", target) is not None
