"""Where every record comes from: a table of all files in `results`."""

import re

from benchmarks import records
from benchmarks.markdown import table


def sources():
    """Date, machine, versions and command of each record."""
    names = sorted(path.stem for path in records.RESULTS.glob("*.json"))
    return table(["record", "date", "machine", "versions", "command"], map(_row, names), words=5)


def _row(name):
    record = records.load(name)
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    machine = re.sub(r"\s+", " ", record["machine"])
    return [f"`{name}`", record["date"], machine, versions, f"`{record['command']}`"]


FIGURES = {"sources": sources}
