"""Records: what a command has measured, with everything that a figure may depend on, as JSON.

A record without one of these cannot be loaded, so no page can show a figure without its source.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re

RESULTS = pathlib.Path(__file__).parent / "results"
SOURCE = ("date", "machine", "versions", "command")
"""What a record says besides its results."""
_LIST = re.compile(r"\[[-+\d.,e\s]+\]")  # of numbers, which belongs on a line


class Incomplete(ValueError):
    """A record does not say where its figures come from."""


def new(command, results, packages=("jax", "jaxlib", "optax", "numpy")):
    """A record of what a command has measured just now, on this machine.

    Args:
      command: What to type to measure it again.
      results: What was measured, as JSON has it: a dict.
      packages: The distributions that the figures depend on, besides Python.
    """
    versions = {"python": platform.python_version()}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions | {name: importlib.metadata.version(name) for name in packages},
        "command": command,
        "results": results,
    }


def save(name, record):
    """Keeps a record in `results`, in place of the last one of this name."""
    check(name, record)
    text = json.dumps(record, indent=1, allow_nan=False)
    text = _LIST.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def load(name):
    """The record of this name.

    Raises:
      Incomplete: It does not say where its figures come from.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise Incomplete(f"There is no benchmarks/results/{name}.json. See benchmarks/__init__.py.")
    record = json.loads(path.read_text(encoding="utf-8"))
    check(name, record)
    return record


def check(name, record):
    """Raises `Incomplete` unless a record has all that it takes."""
    if missing := [key for key in (*SOURCE, "results") if not record.get(key)]:
        raise Incomplete(
            f"benchmarks/results/{name}.json lacks {', '.join(missing)}. Measure it again, by "
            f"`{record.get('command') or 'the command of its kind'}`."
        )


def source(record):
    """A line of Markdown: when, where and with what a record was measured, and how to repeat it."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"*{record['date']}, {record['machine']}, {versions}: `{record['command']}`*"


def machine():
    """What the figures were measured on: the processor, or the GPU of JAX."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} core{'s' if cores != 1 else ''}"


def _processor():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)[1].strip()
    except (OSError, TypeError):  # another system
        return platform.processor() or platform.machine()
