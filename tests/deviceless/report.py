"""Makes the tables of docs/kernels.md of what is compiled now, and writes them there.

    ./dev deviceless --collect-only    # makes the environment
    .venv-deviceless/bin/python -m tests.deviceless.report [TABLE ...] [--check]
    .venv-deviceless/bin/python -m tests.deviceless.report --models llama-70b    # prints

A table stands between `<!-- table NAME -->` and `<!-- end -->`. Of a processor's time, `a100`,
`h200` and `b200` (each kernel, and what the model of throughput makes of it) take one or two
minutes each, `roundings` (of parameters, on all three) four, `triton` (Triton's kernels) five,
`per-thread` (the same, cut in other ways) ten, and `models` twenty.
"""

import argparse
import difflib
import os
import pathlib
import re
import sys

PAGE = pathlib.Path(__file__).parents[2] / "docs/kernels.md"
_PLACE = r"(<!-- table {} -->\n\n)(.*?)(\n\n<!-- end -->)"


def read(page, name):
    """The table of that name on a page, as lines."""
    return _find(page, name)[2].splitlines()


def write(page, name, table):
    """The page with another table in the place of that name."""
    found = _find(page, name)
    return page[: found.start(2)] + table + page[found.end(2) :]


def _find(page, name):
    found = re.search(_PLACE.format(re.escape(name)), page, re.DOTALL)
    if not found:
        raise SystemExit(f"{PAGE.name} has no place for the table `{name}`.")
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    os.environ["JAX_PLATFORMS"] = "cpu"  # the tables import JAX
    from tests.deviceless import whole_models
    from tests.deviceless.throughput import roundings, tables
    from tests.triton import table as triton

    known = {gpu: lambda gpu=gpu: tables.table(gpu, tables.all_kernels()) for gpu in tables.GPUS}
    known["roundings"] = roundings.table
    known["per-thread"] = tables.per_thread
    known["triton"] = triton.table
    known["models"] = lambda: whole_models.table(whole_models.SHOWN)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(known)}")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one differs")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="print these, of all models")
    parser.add_argument("--whole", action="store_true", help="with --models: compile every layer")
    args = parser.parse_args(arguments)
    if unknown := set(args.tables) - set(known):
        parser.error(
            f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    if args.models:
        print(whole_models.table(args.models, args.whole))
        return
    differ = [name for name in args.tables or known if _differs(name, known[name](), args.check)]
    if args.check and differ:
        raise SystemExit(f"Not as compiled now: {', '.join(differ)}.")


def _differs(name, table, check):
    """Whether a table is not the one of the page; shows what is new, and writes it."""
    page = PAGE.read_text(encoding="utf-8")
    old, new = read(page, name), table.splitlines()
    for line in difflib.unified_diff(old, new, name, name, "on the page", "now", n=0, lineterm=""):
        print(line, file=sys.stderr)
    if not check:
        PAGE.write_text(write(page, name, table), encoding="utf-8")
    return old != new


if __name__ == "__main__":
    main()
