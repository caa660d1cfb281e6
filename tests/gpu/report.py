"""The tables at the end of a run, and what became of the targets."""

import collections

from optax_lamblion.cli._output import Table, as_text
from tests.gpu import report_paged

_LION, _LAMB, _ADAMW = (f"{x}8bit {{}} apply_fused" for x in ("lion", "lamb", "adamw"))
_SHARE, _MS = "share of copy bandwidth", "ms per 1e9 parameters"
TARGETS = (  # what, program, key of its record, limit; all but ratios are those of an H200
    (_SHARE, "large: " + _LION.format("bf16"), "of_copy", 0.85),
    (_SHARE, "large: " + _LION.format("f32"), "of_copy", 0.85),
    (_MS, "large: " + _LION.format("bf16"), "ms_per_1e9_elements", 2.2),
    (_MS, "large: " + _LION.format("f32"), "ms_per_1e9_elements", 3.8),
    (_MS, "large: " + _LAMB.format("bf16"), "ms_per_1e9_elements", 3.9),
    (_SHARE, "large: " + _ADAMW.format("bf16"), "of_copy", 0.85),
    ("ms a step, as called", "gpt2: " + _LION.format("bf16"), "median_ms", 0.6),
    ("ms a step", "gpt2: " + _LION.format("bf16") + ", 20 steps in a loop", "median_ms", 0.6),
    ("ms a step, GPU busy", "gpt2: " + _LION.format("bf16"), "busy_ms", 0.6),
    *report_paged.TARGETS,
)
_SHARES = ("of_copy", "of_link")
"""Keys of which more is better."""
_RATIOS = (*_SHARES, "slowdown")
"""Keys that mean the same on every card."""
_RIVALS = (  # ours, and whom it is compared to
    ("lion8bit", ("optax.lion", "flash_lion", "bitsandbytes Lion8bit", "torch AdamW fused")),
    ("lamb8bit", ("optax.lamb", "bitsandbytes LAMB32bit")),
    ("adamw8bit", ("optax.adamw", "bitsandbytes AdamW8bit", "torch AdamW fused")),
)


def add_ratios(records):
    """`(ceiling, link)`: of copies in GB/s, or None, and see `report_paged.add_ratios`.

    Every timing learns what share of them it reaches.
    """
    measured = [r for r in records if r["kind"] == "timing" and r["status"] == "measured"]
    copies = [r["gb_per_s"] for r in measured if r.get("optimizer") in ("copy", "torch copy")]
    ceiling = max(copies, default=None)
    for record in measured:
        if record.get("paging", "resident") != "resident":
            continue  # its bytes are those of another memory
        record["of_copy"] = record["gb_per_s"] / ceiling if ceiling else None
        if ceiling:
            record["floor_ms"] = record["bytes"] / ceiling / 1e6
    return ceiling, report_paged.add_ratios(measured)


def targets(records, device_kind):
    """Each target with what was reached."""
    measured, found = _by_name(records, "timing"), []
    profiles = _by_name(records, "profile")
    for what, name, key, limit in TARGETS:
        record = (profiles if key == "busy_ms" else measured).get(name, {})
        seen = record.get(key)
        applies = key in _RATIOS or "H200" in device_kind
        met = None
        if seen is not None and applies:
            met = seen >= limit if key in _SHARES else seen <= limit
        found.append(
            {"what": what, "program": name, "target": limit, "seen": seen, "applies": applies}
            | {"met": met}
        )
    return found


def _by_name(records, kind):
    return {
        r["name"]: r for r in records if r["kind"] == kind and r["status"] in ("measured", "passed")
    }


def tables(result):
    """All tables as text."""
    records = result["checks"] + result["timings"] + result["profiles"]
    device = (result["environment"].get("device") or {}).get("kind", "no GPU")
    made = [_checks(result["checks"])]
    if result["timings"]:
        made += [_timings(result, device), _peers(records), _models(records)]
        if any("paging" in r for r in result["timings"]):
            made.append(report_paged.table(result))
        made += [_targets(result["targets"], device)]
    if result["parts"]:
        made.append(_parts(result["parts"]))
    problems = [r for r in records if r["status"] in ("failed", "error")]
    text = "\n".join(map(as_text, made))
    for r in problems:
        text += f"\n{r['status'].upper()} {r['part']}: {r['name']}\n  {r['error']}\n"
    return text


def _checks(checks):
    counts = collections.defaultdict(collections.Counter)
    for r in checks:
        counts[r["part"]][r["status"]] += 1
    columns = ["passed", "failed", "error", "skipped"]
    table = Table("Checks", ["part", *columns])
    for part, count in counts.items():
        table.add(part, *(str(count[c]) for c in columns))
    return table


def _timings(result, device):
    ceiling = result["copy_gb_per_s"]
    title = f"Steps on {device}"
    title += f"; copies reach {ceiling:.0f} GB/s" if ceiling else ""
    table = Table(title, ["program", "ms", "min", "p90", "ms/1e9", "B/param", "GB/s", "of copy"])
    for r in result["timings"]:
        if "paging" in r:
            continue
        if r["status"] != "measured":
            table.add(f"{r['name']} ({r['status']})", *["-"] * 7, dimmed=True)
            continue
        table.add(
            r["name"],
            *(f"{r[key]:.3f}" for key in ("median_ms", "min_ms", "p90_ms")),
            f"{r['ms_per_1e9_elements']:.3f}",
            f"{r['bytes_per_element']:.2f}",
            f"{r['gb_per_s']:.0f}",
            f"{r['of_copy']:.0%}" if r.get("of_copy") else "-",
        )
    return table


def _peers(records):
    table = Table(
        "Ours, apply_fused, beside peers (their time / ours)",
        ["what", "ours", "peer", "ours ms", "peer ms", "times"],
        left=["ours", "peer"],
    )
    measured = [r for r in _by_name(records, "timing").values() if "what" in r]
    for ours, rivals in _RIVALS:
        for mine in measured:
            usual = mine.get("mode") == "apply_fused" and not mine.get("implementation")
            if mine["optimizer"] != ours or not usual or mine.get("codec") != "power":
                continue
            for rival in measured:
                same = rival["what"] == mine["what"] and rival["dtype"] == mine["dtype"]
                if same and rival["optimizer"] in rivals:
                    # They may have been given fewer leaves, if memory was short.
                    a, b = mine["ms_per_1e9_elements"], rival["ms_per_1e9_elements"]
                    table.add(
                        f"{mine['what']} {mine['dtype']}",
                        ours,
                        rival["name"].split(": ")[1],
                        f"{mine['median_ms']:.3f}",
                        f"{rival['median_ms']:.3f}",
                        f"{b / a:.2f}",
                    )
    return table


def _models(records):
    table = Table(
        "What the GPU is busy with (profiler)",
        ["program", "busy ms", "first to last ms", "kernels", "as called ms"],
    )
    called = _by_name(records, "timing")
    for r in records:
        if r["kind"] == "profile" and r["status"] == "measured":
            table.add(
                r["name"],
                f"{r['busy_ms']:.3f}",
                f"{r['from_first_to_last_ms']:.3f}",
                f"{r['launches']:.0f}",
                f"{called[r['name']]['median_ms']:.3f}" if r["name"] in called else "-",
            )
    return table


def _targets(found, device):
    table = Table(
        f"Targets ({device})", ["program", "what", "target", "seen", ""], left=["what", ""]
    )
    for t in found:
        verdict = {True: "met", False: "MISSED", None: "-"}[t["met"]]
        if not t["applies"]:
            verdict = "n/a: a target of the H200"
        seen = "-" if t["seen"] is None else f"{t['seen']:.3f}"
        table.add(t["program"], t["what"], str(t["target"]), seen, verdict)
    return table


def _parts(parts):
    table = Table("Processes", ["part", "seconds", "status"], left=["status"])
    for part in parts:
        table.add(part["name"], f"{part['seconds']:.0f}", part["status"])
    return table
