"""What a part of a run leaves behind: one line of JSON for each check and timing, at once.

A part is a process of its own (see `parts`), so what it wrote outlives whatever ends it.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
import traceback

from optax_lamblion.cli._output import to_json


class Skipped(Exception):
    """A check or timing that this machine cannot do, with the reason. No failure."""


class Absent(Exception):
    """A peer that is not installed or cannot run here. No failure."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the command line asked of a part."""

    quick: bool
    interpret: bool
    """Kernels in the interpreter, on a CPU: tries out the suite, and times nothing of interest."""
    leaves: int
    shape: tuple[int, int]
    """Of the leaves of the large timings."""

    @property
    def tiny(self):
        """Whether to do as little as possible of everything."""
        return self.interpret and self.quick


class Records:
    """Runs the checks and timings of one part, and writes down how each one went."""

    def __init__(self, path: pathlib.Path, part: str, deadline: float):
        self._path, self._part, self._deadline = path, part, deadline

    def left(self):
        """Seconds until the part has to end."""
        return self._deadline - time.monotonic()

    def do(self, kind, name, function, **about):
        """Calls the function, which returns a dict of findings or raises."""
        start = time.monotonic()
        record = {"kind": kind, "part": self._part, "name": name, **about}
        if self.left() <= 0:
            self.write(record | {"status": "skipped", "reason": "out of time"})
            return
        try:
            record |= {"status": "passed" if kind == "check" else "measured", **(function() or {})}
        except Skipped as reason:
            record |= {"status": "skipped", "reason": str(reason)}
        except Absent as reason:
            record |= {"status": "absent", "reason": str(reason)}
        except AssertionError as error:
            record |= {"status": "failed", "error": _last(error), "trace": traceback.format_exc()}
        except Exception as error:  # the next one may work
            record |= {"status": "error", "error": _last(error), "trace": traceback.format_exc()}
        self.write(record | {"seconds": round(time.monotonic() - start, 2)})

    def write(self, record):
        """Appends one record."""
        line = json.dumps(json.loads(to_json(_plain(record))))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(f"{record['part']}: {record['name']}: {record['status']}", flush=True)
        if "error" in record:
            print(f"  {record['error']}", file=sys.stderr, flush=True)


def read(path: pathlib.Path):
    """The records in a file that may still be written to."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that is not complete yet
                found.append(json.loads(line))
    return found


def _last(error):
    return f"{type(error).__name__}: {str(error) or 'no message'}"[:2000]


def _plain(x):
    """NumPy's scalars and arrays as Python's numbers and lists."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    return x.tolist() if hasattr(x, "tolist") else x
