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
    """Runs the checks and timings of one part, and writes down how each one went.

    What the file has a result of already, from a process that did not get to the end, is not done
    again.
    """

    def __init__(self, path: pathlib.Path, part: str, deadline: float):
        self._path, self._part, self._deadline = path, part, deadline
        self._known = {_key(r) for r in read(path) if is_final(r)}

    def left(self):
        """Seconds until the part has to end."""
        return self._deadline - time.monotonic()

    def knows(self, kind, name):
        """Whether there is a result already."""
        return (kind, self._part, name) in self._known

    def do(self, kind, name, function, **about):
        """Calls the function, which returns a dict of findings or raises."""
        if self.knows(kind, name):
            return
        start = time.monotonic()
        record = {"kind": kind, "part": self._part, "name": name, **about}
        if self.left() <= 0:
            self.write(record | _OUT_OF_TIME)
            return
        append(self._path, record | {"status": _STARTED, "at": time.time()})
        lost = False
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
            lost = _DEVICE_ERROR in str(error)
        self.write(record | {"seconds": round(time.monotonic() - start, 2)})
        if lost:
            raise SystemExit("After this error nothing more runs on the GPU in this process.")

    def write(self, record):
        """Appends one record."""
        append(self._path, record)
        print(f"{record['part']}: {record['name']}: {record['status']}", flush=True)
        if "error" in record:
            print(f"  {record['error']}", file=sys.stderr, flush=True)


_STARTED = "started"
_OUT_OF_TIME = {"status": "skipped", "reason": "out of time"}
_DEVICE_ERROR = "CUDA_ERROR_"
_HANGS = 120
"""Seconds after which what does not end is taken to never do so."""


def is_final(record):
    """Whether a record says how something went, and not only that there was no time for it."""
    return record["status"] != _STARTED and record.get("reason") != _OUT_OF_TIME["reason"]


def append(path: pathlib.Path, record):
    """Adds a record to a file."""
    line = json.dumps(json.loads(to_json(_plain(record))))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read(path: pathlib.Path):
    """The records in a file that may still be written to: the last one about each thing."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that is not complete yet
                record = json.loads(line)
                found[_key(record)] = record
    return list(found.values())


def close(path: pathlib.Path, error):
    """Says what became of that which a process had started when it ended.

    `error` is what ended it, None if its time was up.
    """
    for record in read(path):
        if record["status"] == _STARTED:
            seconds = time.time() - record.pop("at")
            why = error or (f"no end after {seconds:.0f} s" if seconds > _HANGS else None)
            outcome = {"status": "error", "error": why, "trace": ""} if why else _OUT_OF_TIME
            append(path, record | outcome)


def _key(record):
    return record["kind"], record["part"], record["name"]


def _last(error):
    return f"{type(error).__name__}: {str(error) or 'no message'}"[:2000]


def _plain(x):
    """NumPy's scalars and arrays as Python's numbers and lists."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    return x.tolist() if hasattr(x, "tolist") else x
