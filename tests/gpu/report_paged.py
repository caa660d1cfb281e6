"""What the figures of paging mean beside each other: shares of the link, overlap, slowdown."""

from optax_lamblion.cli._output import Table

TARGETS = (  # what, program, key of its record, limit
    (
        "share of link bandwidth",
        "paged: paged_lion8bit, pages of 32 MiB, 2 in flight",
        "of_link",
        0.8,
    ),
    ("slowdown of training", "training: paged lion8bit, 4096 tokens", "slowdown", 0.03),
    ("slowdown of training", "training: paged lion8bit, 4096 tokens, clipped", "slowdown", 0.03),
)
_GIB = 2**30


def add_ratios(measured):
    """The best bandwidths of the link in GB/s by direction; every record learns its ratios.

    - `transfer_ms`: what the link takes, in the direction that takes longest, or both.
    - `of_link`: the share of it in the time of a step: of the bandwidth that the link has.
    - `link_gb_per_s`: both directions together; `_in` and `_out`: each of them.
    - `overlap`: the time of a step over that of the link or of the kernels, whichever is longer.
      1 is perfect; without overlap it would be their sum.
    - `slowdown`: of training, beside the resident optimizer: 0.03 is 3 %.
    """
    link = {}
    for r in measured:
        if r.get("paging") == "link":
            link[r["direction"]] = max(r["gb_per_s"], link.get(r["direction"], 0.0))
    resident = {
        (r["optimizer"], r["elements"]): r["median_ms"]
        for r in measured
        if r.get("paging") == "resident"
    }
    training = {
        (r["tokens"], r["clip"]): r["median_ms"]
        for r in measured
        if r.get("paging") == "training" and r["which"] == "resident"
    }
    for r in measured:
        if r.get("paging") == "training" and (r["tokens"], r["clip"]) in training:
            r["slowdown"] = r["median_ms"] / training[r["tokens"], r["clip"]] - 1
        if r.get("paging") != "stream" or "link_bytes_in" not in r:
            continue
        moved = {"in": r["link_bytes_in"], "out": r["link_bytes_out"]}
        moved["both"] = moved["in"] + moved["out"]
        r["link_gb_per_s"] = moved["both"] / r["median_ms"] / 1e6
        for direction in ("in", "out"):
            r[f"link_gb_per_s_{direction}"] = moved[direction] / r["median_ms"] / 1e6
        if link.keys() == moved.keys():
            r["transfer_ms"] = max(moved[way] / link[way] / 1e6 for way in moved)
            r["of_link"] = r["transfer_ms"] / r["median_ms"]
            if kernel := resident.get((r["optimizer"], r["elements"])):
                r["kernel_ms"] = kernel
                r["overlap"] = r["median_ms"] / max(r["transfer_ms"], kernel)
    return link


def table(result):
    """All that was measured of paging."""
    columns = ["ms", "min", "GB/s", "of link", "overlap", "slowdown", "peak GiB"]
    made = Table(_title(result["link_gb_per_s"]), ["program", *columns])
    for r in result["timings"]:
        if "paging" not in r:
            continue
        if r["status"] != "measured":
            made.add(f"{r['name']} ({r['status']})", *["-"] * len(columns), dimmed=True)
            continue
        speed = r["gb_per_s"] if r["paging"] == "link" else r.get("link_gb_per_s")
        made.add(
            r["name"],
            f"{r['median_ms']:.3f}",
            f"{r['min_ms']:.3f}",
            _number(speed, ".1f"),
            _number(r.get("of_link"), ".0%"),
            _number(r.get("overlap"), ".2f"),
            _number(r.get("slowdown"), "+.1%"),
            _peak(r),
        )
    return made


def _title(link):
    best = ", ".join(f"{way} {speed:.1f}" for way, speed in link.items())
    return "Paging" + (f"; the link reaches {best} GB/s" if best else "")


def _number(x, form):
    return "-" if x is None else format(x, form)


def _peak(record):
    if (peak := record.get("peak_bytes")) is None or record["paging"] == "link":
        return "-"
    return ("" if record["peak_is_its_own"] else "<= ") + f"{peak / _GIB:.2f}"
