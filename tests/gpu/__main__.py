"""Checks and times everything on the GPU of this machine, and writes one file of results.

    python -m tests.gpu [--quick] [--only checks|timings] [--part NAME] [--out DIR] [--seconds N]

Every part of it is a process, so that none takes the others' results with it.
"""

import argparse
import contextlib
import datetime
import fnmatch
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from optax_lamblion.cli._output import to_json
from tests.gpu import records, report
from tests.gpu.parts import PARTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
_SIZES = re.compile(r"(\d+)x(\d+)x(\d+)")
_CHECKS_SHARE = 0.5
"""Of the time, at most, if timings follow."""


def main():
    args = parse()
    os.chdir(ROOT)
    environment = describe(args)
    if environment["device"] is None and not args.interpret:
        print(
            "python -m tests.gpu: there is no NVIDIA GPU that JAX can use here "
            "(`jax.devices('cuda')` finds none). It needs one, and `jax[cuda13]`.",
            file=sys.stderr,
        )
        return 2
    suite = Suite(args, environment)
    # Who ends this process ends the others, too; the results are written already.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.only != "timings":
            suite.run_checks(1.0 if args.only == "checks" else _CHECKS_SHARE)
        if args.only != "checks":
            suite.run_timings()
    finally:
        suite.stop()
    return suite.finish()


def parse():
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description="Checks and times the kernels on a real GPU."
    )
    parser.add_argument("--quick", action="store_true", help="fewer checks, fewer samples")
    parser.add_argument("--only", choices=["checks", "timings"], help="one half of it")
    parser.add_argument(
        "--part",
        action="append",
        help="only parts with such a name, as 'paged*' or '[!p]*'; may be given again",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=ROOT / "tests/gpu/results",
        help="folder of the results (tests/gpu/results)",
    )
    parser.add_argument(
        "--sizes",
        default="16x8192x8192",
        help="large leaves to time, as LEAVESxROWSxCOLUMNS; fewer where memory is short",
    )
    parser.add_argument("--no-peers", action="store_true", help="do not time other libraries")
    parser.add_argument(
        "--seconds", type=float, default=440, help="end after about so many seconds (440)"
    )
    parser.add_argument("--jobs", type=int, default=8, help="checks that run side by side (8)")
    parser.add_argument("--commit", help="the commit, where this is no git checkout")
    parser.add_argument("--interpret", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (sizes := _SIZES.fullmatch(args.sizes)):
        parser.error(f"--sizes {args.sizes} is not of the form 16x8192x8192")
    args.parts = [
        part
        for part in PARTS.values()
        if any(fnmatch.fnmatchcase(part.name, pattern) for pattern in args.part or ["*"])
    ]
    if not args.parts:
        parser.error(f"--part {' '.join(args.part)} is none of {', '.join(PARTS)}")
    args.leaves, *args.shape = map(int, sizes.groups())
    if args.interpret:
        args.leaves, args.shape = 2, [16, 512]
    args.out = args.out.resolve()
    args.start = time.monotonic()
    return args


def child_environment(args):
    """The variables of a process that runs a part."""
    made = os.environ | {
        # Processes share the GPU, and peers are no guests of JAX's allocator.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
    }
    # None means kernels only where one GPU is visible.
    made.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if args.interpret:
        made["JAX_PLATFORMS"] = "cpu"
    return made


def describe(args):
    """The machine, from a process of its own."""
    command = [sys.executable, "-m", "tests.gpu.environment"]
    try:
        done = subprocess.run(
            command, env=child_environment(args), capture_output=True, text=True, timeout=180
        )
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        stderr = "" if isinstance(error, subprocess.TimeoutExpired) else done.stderr[-3000:]
        sys.exit(f"python -m tests.gpu: JAX does not start here: {error}\n{stderr}")
    return found | {"commit": args.commit or found["commit"]}


class Suite:
    """A run: its processes, and its file of results."""

    def __init__(self, args, environment):
        self._args, self._environment = args, environment
        self._folder = tempfile.TemporaryDirectory()
        self._files, self._parts, self._processes = [], [], []
        device = (environment["device"] or {}).get("kind", "interpreter")
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        date, version = datetime.date.today().isoformat(), environment["versions"]["jax"]
        args.out.mkdir(parents=True, exist_ok=True)
        self._path = args.out / f"{date}-{slug}-jax{version}.json"
        self._earlier = self._read_earlier()

    def _read_earlier(self):
        """The rest of a run that was made in several calls, from the same sources."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            same = found["environment"]["sources"] == self._environment["sources"]
            if same and (self._args.only or self._args.part):
                return found
        return {}

    def left(self):
        """Seconds until the run has to end."""
        return self._args.seconds - (time.monotonic() - self._args.start)

    def run_checks(self, share):
        """Runs the parts that check, some at a time."""
        deadline = time.monotonic() + share * self.left()
        names = [part.name for part in self._args.parts if part.kind == "check"]
        waiting = self._processes_for(names)
        running = []
        while waiting or running:
            while waiting and len(running) < self._args.jobs:
                running.append(Child(self, waiting.pop(0), deadline - time.monotonic()))
            time.sleep(0.2)
            running = [child for child in running if not self._ended(child)]
            self.write()

    def run_timings(self):
        """Runs the parts that time, one after the other."""
        parts = [part for part in self._args.parts if part.kind == "timing"]
        if self._args.no_peers:
            parts = [part for part in parts if not part.peer]
        for names in self._processes_for([part.name for part in parts]):
            first = PARTS[names[0]]
            if self.left() < first.least:
                reached = {"name": first.name, "status": _UNREACHED, "peer": first.peer}
                self._parts.append(reached | {"seconds": 0.0})
                continue
            child = Child(self, names, max(first.share * self.left(), first.least))
            while not self._ended(child):
                time.sleep(0.2)
                self.write()

    def _processes_for(self, names):
        """Names of parts by process. The interpreter's are too small for processes of their own."""
        return [names] * bool(names) if self._args.interpret else [[name] for name in names]

    def _ended(self, child):
        if (status := child.poll()) is None:
            return False
        self._parts.append(status)
        return True

    def result(self):
        """Everything that is known so far."""
        found = [r for path in self._files for r in records.read(path)]
        made = {
            kind + "s": [r for r in found if r["kind"] == kind]
            for kind in ("check", "timing", "profile")
        }
        now = {r["part"] for r in found}
        for kind, new in made.items():
            made[kind] = [r for r in self._earlier.get(kind, []) if r["part"] not in now] + new
        ceiling, link = report.add_ratios(made["timings"])
        device = (self._environment["device"] or {}).get("kind", "")
        return {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "arguments": sys.argv[1:],
            "interpreted": self._args.interpret,
            "environment": self._environment,
            "copy_gb_per_s": ceiling,
            "link_gb_per_s": link,
            "targets": report.targets(made["timings"] + made["profiles"], device),
            "parts": self._earlier.get("parts", []) + self._parts,
            **made,
        }

    def write(self):
        """Writes the file of results, if there is something new."""
        sizes = [path.stat().st_size for path in self._files if path.exists()]
        state = sizes, len(self._parts)
        if state == getattr(self, "_written", None):
            return
        self._written = state
        part = self._path.with_suffix(".part")
        part.write_text(to_json(self.result()) + "\n", encoding="utf-8")
        part.replace(self._path)

    def finish(self):
        """Prints the tables; returns the exit status."""
        self.write()
        result = self.result()
        print("\n" + report.tables(result))
        print(f"{self._path}\n{time.monotonic() - self._args.start:.0f} s")
        found = result["checks"] + [r for r in result["timings"] if not r.get("peer")]
        failed = sum(r["status"] in ("failed", "error") for r in found)
        unreached = sum(r.get("reason") == "out of time" for r in found)
        late = [p["name"] for p in self._parts if p["status"] == _UNREACHED]
        fine = "ended", _UNREACHED
        crashed = [p["name"] for p in self._parts if p["status"] not in fine and not p["peer"]]
        if unreached:
            print(f"{unreached} checks and timings were not reached in time.")
        if late:
            print(f"Nor were these parts, which `--part` runs alone: {' '.join(late)}.")
        if failed or crashed:
            print(f"{failed} failed; processes that did not end well: {crashed or 'none'}.")
        self._folder.cleanup()
        return 1 if failed or crashed else 0

    def _environment_for(self, names):
        made, memory = child_environment(self._args), PARTS[names[0]].memory
        if memory:
            made.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # JAX takes one of its two names
            made["XLA_CLIENT_MEM_FRACTION"] = str(memory)
            made["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"
        return made

    def start(self, names, seconds):
        """Starts a process for some parts: `(process, file of its records, its stderr)`."""
        args = self._args
        path = pathlib.Path(self._folder.name, f"{names[0]}.jsonl")
        self._files.append(path)
        command = [sys.executable, "-m", "tests.gpu.worker", "--records", str(path)]
        command += ["--seconds", str(seconds), "--leaves", str(args.leaves)]
        command += ["--shape", *map(str, args.shape)]
        command += ["--quick"] * args.quick + ["--interpret"] * args.interpret + names
        errors = path.with_suffix(".stderr").open("w+", encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            command, env=self._environment_for(names), cwd=ROOT, stderr=errors, text=True
        )
        self._processes.append(process)
        return process, errors

    def stop(self):
        """Ends what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()


class Child:
    """A process with some parts."""

    def __init__(self, suite, names, seconds):
        self._names, self._start = names, time.monotonic()
        self._limit = self._start + max(seconds, 0)
        self._process, self._errors = suite.start(names, max(seconds, 0))
        self._terminated = None

    def poll(self):
        """What became of it; None while it runs.

        It stops by itself where it can when its time is up; what hangs is ended a little later.
        """
        now = time.monotonic()
        if (code := self._process.poll()) is None:
            if self._terminated is None and now > self._limit + _GRACE:
                self._process.terminate()
                self._terminated = now
            elif self._terminated is not None and now > self._terminated + 5:
                self._process.kill()
            return None
        self._errors.seek(0)
        tail = self._errors.read()[-4000:]
        self._errors.close()
        if self._terminated is not None:
            status = "ended for taking too long"
        else:
            status = "ended" if code == 0 else f"exit status {code}"
        return {
            "name": " ".join(self._names),
            "status": status,
            "seconds": round(now - self._start, 1),
            "peer": all(PARTS[name].peer for name in self._names),
            "stderr_tail": tail if status != "ended" else tail[-1000:],
        }


_UNREACHED = "not reached in time"
_GRACE = 20
"""Seconds for the check or timing that is under way when time is up."""


if __name__ == "__main__":
    sys.exit(main())
