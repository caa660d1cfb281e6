"""What pages show of the step times on a CPU: tables, single ratios and a plot."""

import pathlib

from benchmarks import plots, records
from benchmarks.markdown import number, spread, table
from benchmarks.steps import suite, wide
from optax_lamblion.demo import contest, timing

RECORD = "steps-cpu"
LEAF = "leaf-16m"
_DTYPES = ("float32", "bfloat16")
_PLOT = pathlib.Path(__file__).parents[2] / "docs" / "evidence-steps.png"
_ALT = (
    "Time of a step as a multiple of Optax's, with quartiles, for each list of shapes and each "
    "8-bit optimizer"
)


def contests(record=RECORD):
    """What was measured, by list of shapes, dtype and family."""
    found = records.load(record)["results"]["contests"]
    return {(x["workload"], x["dtype"], x["family"]): x for x in found}


def entry(workload, dtype, family, optimizer, way=None, record=RECORD):
    """One optimizer's part of it."""
    for found in contests(record)[workload, dtype, family]["entries"]:
        if found["optimizer"] == optimizer and way in (None, found["way"]):
            return found
    raise KeyError(f"{optimizer} by {way} did not step on {workload} in {dtype}.")


def leaf():
    """Ours next to Optax's on one leaf, in all ways."""
    head = ["one donated step"]
    head += [f"{dtype}: times Optax's" for dtype in _DTYPES]
    head += [f"{dtype}: times a copy" for dtype in _DTYPES]
    head += ["temporary bytes per parameter (Optax's)"]
    rows = []
    for family in contest.FAMILIES:
        for name, way in ((f"{family}{bits}bit", way) for bits in (8, 32) for way in timing.WAYS):
            both = [entry(LEAF, dtype, family, name, way) for dtype in _DTYPES]
            cells = [spread(x["ratio"], x["ratio_quartiles"]) for x in both]
            # The copy moves the bytes of the 8-bit step.
            cells += [number(x["of_copy"]) if name.endswith("8bit") else "" for x in both]
            rows.append([f"`{name}`, `{way}`", *cells, _temporary(both[0], family)])
    return table(head, rows)


def _temporary(ours, family):
    about = contests()[LEAF, "float32", family]
    theirs = about["entries"][0]
    of_each = [x["temporary_bytes"] / about["parameters"] for x in (ours, theirs)]
    return "{:.2f} ({:.0f})".format(*of_each)


def lists():
    """The 8-bit optimizers on every list of shapes."""
    head = ["list of shapes", "dtype", "leaves", "parameters"]
    head += [f"`{family}8bit`, times `optax.{family}`" for family in contest.FAMILIES]
    rows = []
    for row in suite.SUITE:
        about = contests()[row.workload, row.dtype, contest.FAMILIES[0]]
        cells = [row.workload, row.dtype, f"{about['leaves']:,}", f"{about['parameters']:,}"]
        for family in contest.FAMILIES:
            if family not in row.families:
                cells.append("")
                continue
            ours = entry(row.workload, row.dtype, family, f"{family}8bit", contest.APPLY_FUSED)
            cells.append(spread(ours["ratio"], ours["ratio_quartiles"]))
        rows.append(cells)
    return table(head, rows, words=2)


def compiling():
    """What many leaves cost before the first step."""
    head = ["list of shapes", "leaves"]
    head += [
        f"`{x}{family}{y}`"
        for family in contest.FAMILIES
        for x, y in (("optax.", ""), ("", "8bit"))
    ]
    rows = []
    for row in suite.SUITE:
        if row.everything:
            continue
        cells = [row.workload, contests()[row.workload, row.dtype, "lion"]["leaves"]]
        for family in contest.FAMILIES:
            for name in (f"optax.{family}", f"{family}8bit"):
                if family not in row.families:
                    cells.append("")
                    continue
                x = entry(row.workload, row.dtype, family, name)
                cells.append(f"{x['trace_seconds']:.1f} + {x['compile_seconds']:.1f}")
        rows.append(cells)
    return table(head, rows)


def peers():
    """Others on one leaf, as multiples of our 8-bit step of the family."""
    head = ["optimizer", "state bytes per parameter"]
    for dtype in _DTYPES:
        head += [f"{dtype}: ms", f"{dtype}: times ours"]
    rows = []
    for family in contest.FAMILIES:
        for found in contests()[LEAF, _DTYPES[0], family]["entries"]:
            name, way = found["optimizer"], found["way"]
            ours = name == f"{family}8bit"
            if name == contest.COPY or way == wide.WAY:
                continue
            if way in timing.WAYS and not name.startswith("optax."):
                if (ours, way) != (True, contest.APPLY_FUSED):
                    continue
            cells = [f"**`{name}`**" if ours else name, number(found["state_bytes_per_parameter"])]
            for dtype in _DTYPES:
                cells += _against_ours(dtype, family, name, way)
            rows.append(cells)
    return table(head, rows)


def in_wide_vectors():
    """What vectors of 512 bits change, for ours and for Optax's."""
    head = ["one donated step in 512-bit vectors"]
    for dtype in _DTYPES:
        head += [
            f"{dtype}: times its own in 256 bits",
            "times Optax's",
            "times Optax's in 512 bits",
        ]
    rows = []
    for family in contest.FAMILIES:
        name = f"{family}8bit"
        cells = []
        for dtype in _DTYPES:
            ours = entry(LEAF, dtype, family, name, wide.WAY)["times_ms"]
            others = (
                entry(LEAF, dtype, family, name, contest.APPLY_FUSED),
                entry(LEAF, dtype, family, f"optax.{family}", contest.UPDATE),
                entry(LEAF, dtype, family, f"optax.{family}", wide.WAY),
            )
            for other in others:
                low, middle, high = timing.ratios(ours, other["times_ms"])
                cells.append(spread(middle, (low, high)))
        rows.append([f"`{name}`", *cells])
    return table(head, rows)


def machines():
    """The same command on every machine of which there is a record."""
    head = ["machine", "date"]
    head += [f"`{x}8bit`, {dtype}" for dtype in _DTYPES for x in contest.FAMILIES]
    rows = []
    for name in sorted(path.stem for path in records.RESULTS.glob(f"{RECORD}*.json")):
        record = records.load(name)
        cells = []
        for dtype in _DTYPES:
            for family in contest.FAMILIES:
                x = entry(LEAF, dtype, family, f"{family}8bit", contest.APPLY_FUSED, name)
                cells.append(spread(x["ratio"], x["ratio_quartiles"]))
        rows.append([record["machine"], record["date"], *cells])
    return table(head, rows, words=2)


def _against_ours(dtype, family, name, way):
    try:
        other = entry(LEAF, dtype, family, name, way)
    except KeyError:
        return ["cannot", ""]
    ours = entry(LEAF, dtype, family, f"{family}8bit", contest.APPLY_FUSED)
    low, middle, high = timing.ratios(other["times_ms"], ours["times_ms"])
    return [number(other["median_ms"]), spread(middle, (low, high))]


def ratio(name):
    """How many times as long as Optax's a step on one float32 leaf takes, in a word."""
    family = name.removesuffix("8bit")
    return number(entry(LEAF, "float32", family, name, contest.APPLY_FUSED)["ratio"])


def source():
    """Where the step times come from."""
    return records.source(records.load(RECORD))


def picture():
    """The plot."""
    return plots.shown(_PLOT, _ALT, records.load(RECORD))


def draw():
    """Draws the plot anew."""
    plots.save(_figure, _PLOT, records.load(RECORD))


def _figure():
    colors = dict(zip(contest.FAMILIES, (plots.BLUE, plots.ORANGE, plots.GREEN), strict=True))
    figure, axes = plots.new((9, 4.2), 1, 1)
    ax, names = axes[0][0], []
    for at, row in enumerate(suite.SUITE):
        names.append(f"{row.workload}, {row.dtype}")
        for i, family in enumerate(contest.FAMILIES):
            if family not in row.families:
                continue
            x = entry(row.workload, row.dtype, family, f"{family}8bit", contest.APPLY_FUSED)
            low, high = x["ratio_quartiles"]
            y = at + 0.22 * (i - 1)
            ax.plot([low, high], [y, y], color=colors[family], linewidth=2)
            ax.plot(x["ratio"], y, "o", color=colors[family], label=None if at else f"{family}8bit")
    ax.axvline(1, color=plots.GREY, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("time of a step, times Optax's")
    ax.legend(frameon=False)
    return figure


FIGURES = {
    "steps-cpu.leaf": leaf,
    "steps-cpu.lists": lists,
    "steps-cpu.compiling": compiling,
    "steps-cpu.peers": peers,
    "steps-cpu.wide": in_wide_vectors,
    "steps-cpu.machines": machines,
    "steps-cpu.source": source,
    "steps-cpu.plot": picture,
    **{
        f"steps-cpu.{family}8bit": lambda name=f"{family}8bit": ratio(name)
        for family in contest.FAMILIES
    },
}
