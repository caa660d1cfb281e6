"""A sheet of paper for the pictures of `docs/concepts.md`: shapes and words, as an SVG file.

A sheet is narrow, so that its words can be read on a phone. It has its own background and follows
the reader's light or dark mode. Where a page is dark and the reader's system is not, it is a light
card.
"""

import html

WIDTH = 480

_LIGHT = {
    "paper": "#ffffff",
    "edge": "#d0d7de",
    "ink": "#1c2733",
    "muted": "#57606a",
    "blue": "#0b5cad",
    "orange": "#a84300",
    "green": "#1f6b2a",
    "pale": "#eef2f6",
    "paleblue": "#dcebfa",
    "paleorange": "#fbe6d4",
    "palegreen": "#ddf1e0",
}
_DARK = {
    "paper": "#161b22",
    "edge": "#3d444d",
    "ink": "#e6edf3",
    "muted": "#a5b0bb",
    "blue": "#79b8ff",
    "orange": "#f5a66a",
    "green": "#7ee08f",
    "pale": "#22292f",
    "paleblue": "#16324f",
    "paleorange": "#4a2c12",
    "palegreen": "#173b22",
}


def _rules(colors):
    return " ".join(f".{name} {{ --c: {value}; }}" for name, value in colors.items())


_STYLE = f"""\
text {{ font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  font-size: 15px; fill: var(--c); }}
.code {{ font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; }}
.small {{ font-size: 13px; }} .bold {{ font-weight: 600; }}
.fill {{ fill: var(--c); }} .line {{ stroke: var(--c); fill: none; }}
{_rules(_LIGHT)}
@media (prefers-color-scheme: dark) {{ {_rules(_DARK)} }}"""


class Sheet:
    """A picture that grows by what is drawn on it."""

    def __init__(self, height, title, description):
        self.height, self.title, self.description = height, title, description
        self._parts = []
        self.rect(0.5, 0.5, WIDTH - 1, height - 1, "paper", edge="edge", radius=8)

    def rect(self, x, y, width, height, color, *, edge=None, radius=0):
        """A rectangle, filled unless `color` is None, outlined if it has an `edge`."""
        at = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        if color:
            self._parts.append(f'<rect class="fill {color}" {at}/>')
        if edge:
            self._parts.append(f'<rect class="line {edge}" {at}/>')

    def line(self, points, color="ink", *, width=1.5, dash=None, arrow=False):
        """A line through points, which may end in an arrow."""
        at = " ".join(f"{x:g},{y:g}" for x, y in points)
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<polyline class="line {color}" points="{at}" stroke-width="{width:g}"{more}/>'
        )
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
            dx, dy = 8 * (x - x0) / length, 8 * (y - y0) / length
            head = [(x, y), (x - dx - dy / 2, y - dy + dx / 2), (x - dx + dy / 2, y - dy - dx / 2)]
            corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in head)
            self._parts.append(f'<polygon class="fill {color}" points="{corners}"/>')

    def ticks(self, xs, top, bottom, color):
        """Thin upright lines."""
        path = "".join(f"M{x:.1f} {top:g}V{bottom:g}" for x in xs)
        self._parts.append(f'<path class="line {color}" d="{path}" stroke-width="0.6"/>')

    def circle(self, x, y, radius, color):
        """A filled circle."""
        self._parts.append(f'<circle class="fill {color}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')

    def text(self, x, y, words, color="ink", *, anchor="start", kind=""):
        """Words on a base line; `kind` is of "small", "bold" and "code"."""
        kind = f" {kind}" if kind else ""
        self._parts.append(
            f'<text class="{color}{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
            f"{html.escape(words, quote=False)}</text>"
        )

    def box(self, x, y, width, height, words, color="pale", ink="ink", kind=""):
        """A box with lines of words in its middle."""
        self.rect(x, y, width, height, color, edge="edge", radius=5)
        top = y + height / 2 + 5 - 9 * (len(words) - 1)
        for i, line in enumerate(words):
            self.text(x + width / 2, top + 18 * i, line, ink, anchor="middle", kind=kind)

    def svg(self):
        """The file."""
        parts = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} '
            f'{self.height}" width="{1.25 * WIDTH:g}" height="{1.25 * self.height:g}">\n'
            f"<title>{html.escape(self.title)}</title>\n"
            f"<desc>{html.escape(self.description)}</desc>\n"
            f"<style>\n{_STYLE}\n</style>\n{parts}\n</svg>\n"
        )
