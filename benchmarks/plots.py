"""Plots of records, for light and dark pages. A plot says which record it was drawn from."""

import hashlib
import json

from optax_lamblion.demo.themes import BLUE, GREEN, GREY, ORANGE, save_in_themes

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "log_y", "new", "save", "shown"]
_KEY = "Record"


def new(size, rows, columns, **kwargs):
    """`(figure, axes)`, with a grid behind the lines."""
    from matplotlib.figure import Figure

    figure = Figure(size, dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid()
        ax.set_axisbelow(True)
    return figure, axes


def log_y(ax):
    """Makes the vertical axis logarithmic, with its numbers written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    wide, middling = (1,), (1, 2, 5)
    subs = wide if high > 500 * low else middling if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 7)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def save(draw, path, record):
    """Saves what `draw` returns in both themes, with the record that it is of."""
    save_in_themes(draw, path, metadata={_KEY: _digest(record)})


def shown(path, alt, record):
    """The Markdown that shows a plot.

    Raises:
      ValueError: It was drawn from another record.
    """
    for file in (path, path.with_stem(f"{path.stem}-dark")):
        if not file.exists() or _drawn_from(file) != _digest(record):
            raise ValueError(
                f"{file.name} was not drawn from the record that is there now. Draw it anew by "
                f"`{record['command']} --draw`."
            )
    return f"![{alt}]({path.name})"


def _drawn_from(file):
    from PIL import Image

    with Image.open(file) as image:
        return image.info.get(_KEY)


def _digest(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
