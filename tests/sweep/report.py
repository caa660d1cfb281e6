"""The table of learning rates on `docs/hyperparameters.md`, made of `results.json`."""

import json
import pathlib
import re
import textwrap

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parents[1] / "docs/hyperparameters.md"
_RESULTS = HERE / "results.json"
_PLACE = re.compile(r"(<!-- sweep -->\n\n)(.*?)(\n\n<!-- /sweep -->)", re.DOTALL)
FAMILIES = ("adamw", "lion", "lamb")


def read():
    """What has been trained."""
    return json.loads(_RESULTS.read_text(encoding="utf-8"))


def write(results):
    """Keeps the results, and makes the page's table of them."""
    _RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    found = _PLACE.search(page)
    shown = page[: found.start(2)] + markdown(results) + page[found.end(2) :]
    PAGE.write_text(shown, encoding="utf-8")


def on_the_page():
    """What the page says of the trainings now."""
    return _PLACE.search(PAGE.read_text(encoding="utf-8"))[2]


def best(results, name):
    """The learning rate with the lowest loss."""
    losses = results["losses"][name]
    return min(losses, key=losses.get)


def markdown(results):
    """What was trained, and a row for every optimizer and learning rate."""
    about = (
        f"{results['task']}, {results['parameters']:,} parameters, {results['steps']} steps, one "
        "seed, warm-up and cosine schedule, no weight decay. Each cell is the held-out loss in "
        "nats per byte; the best of a row is bold."
    )
    tables = [_table(results, family) for family in FAMILIES]
    about = textwrap.fill(about, 100, break_on_hyphens=False)
    return "\n\n".join([about, *tables])


def _table(results, family):
    rates = list(results["losses"][f"{family}32bit"])
    lines = [["learning rate", *rates], ["---"] + ["---:"] * len(rates)]
    for bits in (32, 8):
        name = f"{family}{bits}bit"
        losses, top = results["losses"][name], best(results, name)
        cells = [f"**{losses[r]:.3f}**" if r == top else f"{losses[r]:.3f}" for r in rates]
        lines.append([f"`{name}`", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
