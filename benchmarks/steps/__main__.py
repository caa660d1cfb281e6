"""`python -m benchmarks.steps`: times all of `suite` and keeps it as a record, in 6 minutes."""

import argparse
import importlib.util
import os
import sys
import time

# Both of two processes need room on a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402

from benchmarks import records  # noqa: E402
from benchmarks.steps import figures, flash, suite, torch_peers, wide  # noqa: E402
from optax_lamblion.demo import contest, timing  # noqa: E402

COMMAND = "python -m benchmarks.steps"


def contests(rows, families, process, turns=None, say=print):
    """What was measured, for each row and family."""
    start = time.monotonic()
    found = []
    for row in rows:
        arrays = contest.Arrays(row.shapes(), row.dtype)
        for family in row.families:
            if family not in families:
                continue
            found.append(_contest(row, family, arrays, process, turns))
            for entry in found[-1]["entries"]:
                say(_line(found[-1], entry, time.monotonic() - start))
    return found


def _contest(row, family, arrays, process, turns):
    entries = contest.of_family(family, arrays, row.bits, row.ways)
    absent = {}
    if row.everything and jax.default_backend() == "cpu":
        entries += wide.of_family(family, arrays)
    if row.everything and flash_is_there():
        entries += flash.of_family(family, arrays)
    if row.everything and process is not None:
        entries += process.of_family(family, arrays, absent)
    times = timing.take_turns([entry.contestant for entry in entries], turns, row.seconds)
    measured = contest.findings(entries, times, arrays.elements)
    for finding, entry, of_entry in zip(measured, entries, times, strict=True):
        state = getattr(entry.contestant, "state_bytes", None)
        if state is not None:
            finding["state_bytes_per_parameter"] = state / arrays.elements
        finding["times_ms"] = [float(f"{x:.4g}") for x in of_entry]
    return {
        "workload": row.workload,
        "dtype": row.dtype,
        "family": family,
        "leaves": len(arrays.shapes),
        "parameters": arrays.elements,
        "entries": measured,
        "absent": absent,
    }


def _line(of_contest, entry, seconds):
    low, high = entry["ratio_quartiles"]
    return (
        f"{seconds:4.0f} s  {of_contest['workload']:15} {of_contest['dtype']:9} "
        f"{entry['optimizer']:22} {entry['way']:12} {entry['median_ms']:9.2f} ms  "
        f"{entry['ratio']:6.2f} of {entry['baseline']} ({low:.2f} to {high:.2f})  "
        f"{entry['of_copy']:6.2f} of a copy"
    )


def flash_is_there():
    """Whether flashoptim-jax is installed."""
    return importlib.util.find_spec("flashoptim_jax") is not None


def _missing(python):
    """What is not there, and how to get it."""
    if not flash_is_there():
        return f"{flash.PACKAGE} is not installed. See benchmarks/steps/__init__.py."
    if not python.exists():
        return f"There is no {python}, the environment of the peers. `./dev peers` makes it."
    return None


def main(arguments=None):
    """Measures, and keeps the record if it is of everything; returns the exit status."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small arrays, to try it out")
    parser.add_argument("--only", action="append", help="a list of shapes; can be given again")
    parser.add_argument("--family", action="append", choices=contest.FAMILIES)
    parser.add_argument("--dtype", help="of the rows with this one only")
    parser.add_argument("--turns", type=int, help="instead of as many as fit into some seconds")
    parser.add_argument("--no-peers", action="store_true", help="without PyTorch's")
    parser.add_argument("--draw", action="store_true", help="only the plot of the last record")
    args = parser.parse_args(arguments)
    if args.draw:
        figures.draw()
        return 0
    rows = [
        row
        for row in (suite.QUICK if args.quick else suite.SUITE)
        if (not args.only or row.workload in args.only) and args.dtype in (None, row.dtype)
    ]
    families = args.family or contest.FAMILIES
    if args.no_peers:
        contests(rows, families, None, args.turns, _say)
        return 0
    if missing := _missing(torch_peers.PYTHON):
        print(f"{missing} Or try `--no-peers`, which keeps no record.", file=sys.stderr)
        return 2
    with torch_peers.Process() as process:
        found = contests(rows, families, process, args.turns, _say)
        versions = process.versions
    if any((args.quick, args.only, args.family, args.dtype, args.turns)):
        print("Nothing is kept of a part of the suite.")
        return 0
    packages = ("jax", "jaxlib", "optax", "numpy", flash.PACKAGE)
    record = records.new(COMMAND, {"contests": found}, packages)
    record["versions"] |= versions
    records.save(f"steps-{jax.default_backend()}", record)
    figures.draw()
    return 0


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
