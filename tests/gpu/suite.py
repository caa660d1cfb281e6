"""A run: its processes, and its file of results, in which several calls go on with each other."""

import contextlib
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from optax_lamblion.cli._output import to_json
from tests.gpu import records, report
from tests.gpu.parts import PARTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = "check", "timing", "profile"


class Suite:
    """All that one call does."""

    def __init__(self, args, environment):
        self._args, self._environment = args, environment
        self._folder = tempfile.TemporaryDirectory()
        self._files, self._parts, self._processes = {}, [], []
        device = (environment["device"] or {}).get("kind", "interpreter")
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        version = environment["versions"]["jax"]
        args.out.mkdir(parents=True, exist_ok=True)
        self._path = args.out / f"{datetime.date.today().isoformat()}-{slug}-jax{version}.json"
        self._earlier = self._read_earlier(f"*-{slug}-jax{version}.json")

    def _read_earlier(self, pattern):
        """The results of calls before this one, of the same sources and options, or nothing."""
        for path in sorted(self._args.out.glob(pattern), reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found = json.loads(path.read_text(encoding="utf-8"))
                same = found["environment"]["sources"] == self._environment["sources"]
                if same and found["options"] == self._options():
                    self._path = path
                    return found
        return {}

    def _options(self):
        """What two calls have to agree on for their results to stand in one file."""
        args = self._args
        return {
            "quick": args.quick,
            "interpret": args.interpret,
            "leaves": args.leaves,
            "shape": list(args.shape),
        }

    def _earlier_records(self, keep):
        """The records of earlier calls, of those parts of which `keep(name)` is true."""
        kinds = (kind + "s" for kind in KINDS)
        return [r for kind in kinds for r in self._earlier.get(kind, []) if keep(r["part"])]

    def left(self):
        """Seconds until the run has to end."""
        return 60 * self._args.minutes - (time.monotonic() - self._args.start)

    def run_checks(self, share):
        """Runs the parts that check, some at a time."""
        deadline = time.monotonic() + share * self.left()
        waiting = self._processes_for(part for part in self._args.parts if part.kind == "check")
        running = []
        while waiting or running:
            while waiting and len(running) < self._args.jobs:
                running.append(Child(self, waiting.pop(0), deadline - time.monotonic()))
            time.sleep(0.2)
            ended = [child for child in running if self._ended(child)]
            running = [child for child in running if child not in ended]
            if time.monotonic() < deadline:
                waiting = [child.names for child in ended if child.goes_on] + waiting
            self.write()

    def run_timings(self):
        """Runs the parts that time, one after the other."""
        parts = [part for part in self._args.parts if part.kind == "timing"]
        if self._args.no_peers:
            parts = [part for part in parts if not part.peer]
        waiting = self._processes_for(parts)
        while waiting:
            names = waiting.pop(0)
            first = PARTS[names[0]]
            if self.left() <= first.least:
                reached = {"name": " ".join(names), "status": UNREACHED, "peer": first.peer}
                self._parts.append(reached | {"seconds": 0.0})
                continue
            child = Child(self, names, max(first.share * self.left(), first.least))
            while not self._ended(child):
                time.sleep(0.2)
                self.write()
            if child.goes_on:
                waiting.insert(0, names)

    def _processes_for(self, parts):
        """Names of parts by process, of those that are not done.

        The interpreter's are too small for processes of their own.
        """
        done = {p["name"] for p in self._earlier.get("parts", []) if p["status"] == ENDED}
        late = {r["part"] for r in self._earlier_records(bool) if not records.is_final(r)}
        again = self._args.again
        names = [x.name for x in parts if again or x.name not in done or x.name in late]
        return [names] * bool(names) if self._args.interpret else [[name] for name in names]

    def _ended(self, child):
        if (status := child.poll()) is None:
            return False
        self._parts.append(status)
        return True

    def result(self):
        """Everything that is known so far."""
        found = self._earlier_records(lambda part: part not in self._files)
        for path in dict.fromkeys(self._files.values()):
            found += records.read(path)
        made = {kind + "s": [r for r in found if r["kind"] == kind] for kind in KINDS}
        ceiling, link = report.add_ratios(made["timings"])
        device = (self._environment["device"] or {}).get("kind", "")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {
            "created": self._earlier.get("created", now),
            "last_call": now,
            "arguments": sys.argv[1:],
            "options": self._options(),
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
        sizes = [path.stat().st_size for path in self._files.values() if path.exists()]
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
        print(self._left_out(result))
        found = result["checks"] + [r for r in result["timings"] if not r.get("peer")]
        failed = sum(r["status"] in ("failed", "error") for r in found)
        fine = ENDED, UNREACHED, STOPPED
        crashed = [p["name"] for p in self._parts if p["status"] not in fine and not p["peer"]]
        if failed or crashed:
            print(f"{failed} failed; processes that did not end well: {crashed or 'none'}.")
        self._folder.cleanup()
        return 1 if failed or crashed else 0

    def _left_out(self, result):
        """What a further call would do."""
        found = result["checks"] + result["timings"] + result["profiles"]
        lines, no_peers = [], self._args.no_peers
        for part in self._args.parts:
            of_part = [r for r in found if r["part"] == part.name]
            late = sum(not records.is_final(r) for r in of_part)
            left_out = part.kind != (self._args.only or part.kind + "s")[:-1]
            if left_out or (no_peers and part.peer):
                continue
            if late or not of_part:
                number = f"{late} of {len(of_part)}" if of_part else "all of it"
                lines.append(f"  {part.name}: {number}")
        if not lines:
            return "Nothing was left out."
        return "\n".join(["Left out for lack of time; the same command goes on with it:", *lines])

    def _environment_for(self, names):
        made, memory = child_environment(self._args), PARTS[names[0]].memory
        if memory:
            made.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # JAX takes one of its two names
            made["XLA_CLIENT_MEM_FRACTION"] = str(memory)
            made["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"
        return made

    def start(self, names, seconds):
        """Starts a process for some parts: `(process, file of its records, its stderr)`.

        The file begins with what earlier calls have found, which the process does not do again.
        """
        args, path = self._args, pathlib.Path(self._folder.name, f"{names[0]}.jsonl")
        if names[0] not in self._files:
            old = [] if args.again else self._earlier_records(lambda part: part in names)
            for record in filter(records.is_final, old):
                records.append(path, record)
        self._files |= dict.fromkeys(names, path)
        command = [sys.executable, "-m", "tests.gpu.worker", "--records", str(path)]
        command += ["--seconds", str(seconds), "--leaves", str(args.leaves)]
        command += ["--shape", *map(str, args.shape)]
        command += ["--quick"] * args.quick + ["--interpret"] * args.interpret + names
        errors = path.with_suffix(".stderr").open("w+", encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            command, env=self._environment_for(names), cwd=ROOT, stderr=errors, text=True
        )
        self._processes.append(process)
        return process, path, errors

    def stop(self):
        """Ends what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()


class Child:
    """A process with some parts."""

    def __init__(self, suite, names, seconds):
        self.names, self._start = names, time.monotonic()
        self._limit = self._start + max(seconds, 0)
        self._process, self._path, self._errors = suite.start(names, max(seconds, 0))
        self._known = self._finals()
        self._terminated = None
        self.goes_on = False
        """Whether it crashed behind something new, so that another process can do the rest."""

    def _finals(self):
        return sum(map(records.is_final, records.read(self._path)))

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
            status = STOPPED
            records.close(self._path, None)
        else:
            status = ENDED if code == 0 else f"exit status {code}"
            records.close(self._path, f"the process ended with it: {status}")
            self.goes_on = code != 0 and self._finals() > self._known
        return {
            "name": " ".join(self.names),
            "status": status,
            "seconds": round(now - self._start, 1),
            "peer": all(PARTS[name].peer for name in self.names),
            "stderr_tail": tail if status != ENDED else tail[-1000:],
        }


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


ENDED, UNREACHED, STOPPED = "ended", "not reached in time", "stopped when time was up"
_GRACE = 20
"""Seconds for the check or timing that is under way when time is up."""
