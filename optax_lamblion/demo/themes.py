"""Colours of plots, on light and on dark pages.

Plots name colours by the constants below, and text and axes go without. What they look like is the
theme's to say: draw and save inside of `with plot_theme("dark"):`, or let `save_in_themes` do both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "C0", "C1", "C2", "C3"
PALE_BLUE, PALE_ORANGE, PALE_GREEN, PALE_GREY = "C4", "C5", "C6", "C7"  # for lines behind others

# Blue and orange differ for every kind of colour vision. Pale is what is nearer to the background.
_COLORS = {
    "light": [
        "#0b4f94",
        "#a84300",
        "#1f6b2a",
        "#777777",
        "#8ab8e6",
        "#f5b27a",
        "#a9d3a5",
        "#bdbdbd",
    ],
    "dark": [
        "#6cb2f5",
        "#f2954b",
        "#7fd08a",
        "#969ba1",
        "#2d5f92",
        "#8c5122",
        "#3a6b41",
        "#5b5f65",
    ],
}
_INK = {"light": "#222222", "dark": "#d3d7da"}
_LINES = {"light": "#999999", "dark": "#6c7177"}
_GRID = {"light": "#e6e6e6", "dark": "#2c2f33"}
_BACKGROUND = {"light": "#ffffff", "dark": "#131416"}


def plot_theme(name: str) -> contextlib.AbstractContextManager:
    """The colours of a theme, `"light"` or `"dark"`, for what is drawn and saved inside."""
    ink, lines, background = _INK[name], _LINES[name], _BACKGROUND[name]
    return matplotlib.rc_context(
        {
            "axes.prop_cycle": cycler(color=_COLORS[name]),
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.titlecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.edgecolor": lines,
            "grid.color": _GRID[name],
            "figure.facecolor": background,
            "axes.facecolor": background,
            # Dark pages are not all of one colour. Light ones are white, and a light picture may
            # find itself on a dark page.
            "savefig.transparent": name == "dark",
        }
    )


def save_in_themes(draw: Callable[[], Figure], path: str | Path, **options) -> None:
    """Saves what `draw` returns as `path` and, for dark pages, beside it with `-dark` in its name.

    Args:
      draw: Draws the figure; called once for each theme.
      path: Where the light one goes.
      **options: For `Figure.savefig`.
    """
    path = Path(path)
    for theme, stem in ("light", path.stem), ("dark", f"{path.stem}-dark"):
        with plot_theme(theme):
            draw().savefig(path.with_stem(stem), **options)
