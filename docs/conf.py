"""The site: `./dev docs` builds it, and any warning fails the build.

Pages are written to be read on GitHub as well, so what differs here is done here: notebooks are
copied below this folder, where Sphinx looks for pages, and links out of it are pointed to the pages
that came of their targets.
"""

import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx.errors import ConfigError

import optax_lamblion

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

from _extensions import annotations, inventories  # noqa: E402

from benchmarks import pages, records  # noqa: E402

project = "optax-lamblion"
author = "The optax-lamblion authors"
project_copyright = author
version = release = optax_lamblion.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "_extensions.equations",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
nitpicky = True
intersphinx_mapping = inventories.write_inventories(DOCS / "_build" / "inventories")

# --- Pages and notebooks -------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to `page.md#a-heading`, as on GitHub

nb_execution_mode = "off"  # notebooks are kept with their outputs
nb_merge_streams = True

# --- Docstrings ----------------------------------------------------------------------------------

autodoc_typehints = "description"  # with the arguments, so that signatures stay short
autodoc_typehints_description_target = "documented"
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
pygments_dark_style = "github-dark"
html_title = project
html_math_renderer = "svg"
html_favicon = html_logo = "_static/logo.svg"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#6cb2f5", "color-brand-content": "#6cb2f5"},
}
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


def check_figures(app):
    """Fails the build where a page shows a figure that is not that of its record."""
    try:
        old = ", ".join(str(path.relative_to(ROOT)) for path in pages.old())
    except (records.Incomplete, KeyError, ValueError) as error:
        raise ConfigError(f"A figure cannot be made: {error}") from error
    if old:
        raise ConfigError(
            f"Figures in {old} are not those of benchmarks/results. Type "
            "`python -m benchmarks.pages --write`."
        )


def redirect_links(app, docname, source):
    """Turns links between files of the repository into links between pages."""
    site = "../" * docname.count("/")
    repository = site if docname.startswith("notebooks/") else f"../{site}"
    for file, page in PAGES.items():
        source[0] = source[0].replace(f"]({repository}{file}", f"]({site}{page}")


# A picture on lines of its own: as Markdown has it, or as HTML that goes by the reader's system.
PICTURE = re.compile(
    r"^(?:!\[(?P<alt>[^]]+)\]\((?P<file>[^)]+)\)"
    r'|<picture>\s*<source [^>]*>\s*<img alt="(?P<html_alt>[^"]+)" src="(?P<html_file>[^"]+)"[^>]*>'
    r"\s*</picture>)$",
    re.MULTILINE,
)


def show_pictures(app, docname, source):
    """Shows pictures that are there for dark pages, too, by the theme's own switch."""
    folder = (DOCS / docname).parent

    def directives(found):
        light = found["file"] or found["html_file"]
        dark = "-dark.".join(light.rsplit(".", 1))
        if not (folder / dark).exists():
            return found[0] if found["file"] else directive(found, light, "picture")
        return directive(found, light, "only-light") + directive(found, dark, "only-dark")

    def directive(found, file, css_class):
        alt = " ".join((found["alt"] or found["html_alt"]).split())
        return f"```{{image}} {file}\n:alt: {alt}\n:class: {css_class}\n```\n"

    if not docname.startswith("notebooks/"):
        source[0] = PICTURE.sub(directives, source[0])


def resolve_backticks(app, env, node, contnode):
    """What is in backticks need not be a name: `docs/paging.md` is a page, the rest is code."""
    if node.get("reftype") != "obj":
        return None
    page = re.fullmatch(r"docs/(\w+)\.md", node["reftarget"])
    if not page:
        return None if inventories.is_foreign(node["reftarget"]) else contnode
    if page[1] not in env.titles:
        return None  # and Sphinx warns, as about names of other projects that are not written down
    uri = app.builder.get_relative_uri(node["refdoc"], page[1])
    return nodes.reference("", env.titles[page[1]].astext(), internal=True, refuri=uri)


def setup(app):
    """Connects the above."""
    app.add_role_to_domain("py", "obj", inventories.Backticks(), override=True)
    app.connect("config-inited", copy_notebooks)
    app.connect("builder-inited", check_figures)
    app.connect("source-read", redirect_links)
    app.connect("source-read", show_pictures)
    app.connect("autodoc-before-process-signature", annotations.as_written)
    app.connect("missing-reference", resolve_backticks)
