"""The site: `./dev docs` builds it, and any warning fails the build.

Pages are written to be read on GitHub as well, so what differs here is done here: notebooks are
copied below this folder, where Sphinx looks for pages, and links out of it are pointed to the pages
that came of their targets.
"""

import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.domains.python import PyXRefRole

import optax_lamblion

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "optax-lamblion"
author = "The optax-lamblion authors"
project_copyright = author
version = release = optax_lamblion.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
nitpicky = True

# --- Pages and notebooks -------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to `page.md#a-heading`, as on GitHub

# Notebooks are kept without outputs: those on the site are of this build, and of this version.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# --- Docstrings ----------------------------------------------------------------------------------

autodoc_typehints = "none"  # what an argument takes is said in words
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88  # longer ones have a line for each argument
napoleon_custom_sections = ["State"]
napoleon_attr_annotations = False  # nor is what an attribute holds a link
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what is returned is one sentence, beginning with what it is
default_role = "py:obj"  # one backtick: a link where the name is documented here, else code

# --- Looks ---------------------------------------------------------------------------------------

highlight_language = "text"  # where a block does not say in which language it is
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# --- What is not below this folder ---------------------------------------------------------------

PAGES = {  # by where their content is in the repository
    "docs/": "",
    "notebooks/": "notebooks/",
    "README.md#what-eight-bits-cost": "accuracy.md",
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "tests/gpu/README.md": "project/gpu.md",
}


def copy_notebooks(app, config):
    """Copies the notebooks, with their times: by those, Sphinx knows which have changed."""
    copies = DOCS / "notebooks"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, copies)


def redirect_links(app, docname, source):
    """Turns links between files of the repository into links between pages."""
    site = "../" * docname.count("/")
    repository = site if docname.startswith("notebooks/") else f"../{site}"
    for file, page in PAGES.items():
        source[0] = source[0].replace(f"]({repository}{file}", f"]({site}{page}")


class Backticks(PyXRefRole):
    """The default role: `.pt` keeps its dot, which would tell Sphinx where to look for a name."""

    def process_link(self, env, refnode, has_explicit_title, title, target):
        """Says where the name is used, and leaves it alone."""
        super().process_link(env, refnode, True, title, target)
        return title, target


def resolve_backticks(app, env, node, contnode):
    """What is in backticks need not be a name: `docs/paging.md` is a page, the rest is code."""
    if node.get("reftype") != "obj":
        return None
    page = re.fullmatch(r"docs/(\w+)\.md", node["reftarget"])
    if not page:
        return contnode
    if page[1] not in env.titles:
        return None  # and Sphinx warns
    uri = app.builder.get_relative_uri(node["refdoc"], page[1])
    return nodes.reference("", env.titles[page[1]].astext(), internal=True, refuri=uri)


def setup(app):
    """Connects the above."""
    app.add_role_to_domain("py", "obj", Backticks(), override=True)
    app.connect("config-inited", copy_notebooks)
    app.connect("source-read", redirect_links)
    app.connect("missing-reference", resolve_backticks)
