"""Equations as SVG, drawn when the site is built.

A reader's browser needs no script, no font and no network for them, and they have the colour of the
text around them.
"""

import html
import re

import ziamath
from docutils.nodes import SkipNode

_SIZE = 20  # of what is drawn; what is shown goes by the text, at 1.1 times its size
_SCALE = 1.1


def draw(tex, inline=False):
    """An equation as an SVG element."""
    ziamath.config.svg2 = False  # paths alone: identifiers of glyphs would meet on a page
    ziamath.config.precision = 2
    svg = ziamath.Latex(tex, size=_SIZE, inline=inline, color="currentColor").svg()
    box = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', svg)
    _, top, width, height = (float(x) for x in box.groups())
    em = _SCALE / _SIZE
    style = f"width: {width * em:.3f}em"
    if inline:  # on the line of the text
        style += f"; height: {height * em:.3f}em; vertical-align: {-(top + height) * em:.3f}em"
    label = html.escape(" ".join(tex.split()))
    head = f'<svg role="img" aria-label="{label}" style="{style}" {box[0]}>'
    return head + svg.partition(">")[2]


def visit_inline(self, node):
    """An equation in a line of text."""
    self.body.append(f'<span class="equation">{draw(node.astext(), inline=True)}</span>')
    raise SkipNode


def visit_block(self, node):
    """An equation, or several, on lines of their own."""
    tex = node.astext().strip()
    if r"\\" in tex and not tex.startswith(r"\begin"):
        tex = rf"\begin{{aligned}} {tex} \end{{aligned}}"
    self.body.append(f'<div class="equation">{draw(tex)}</div>\n')
    raise SkipNode


def setup(app):
    """Names the two as a way to render equations."""
    app.add_html_math_renderer("svg", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
