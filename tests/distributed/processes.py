"""Starts the processes of a training run, and sees to it that none outlives the test."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICES = 4
STEPS = 12
SECONDS = 180
"""Far more than a run takes. All processes compile at once, on whatever cores there are."""


class Run:
    """A run of `train.py`: a context manager at whose end all of its processes have ended.

    Args:
      folder: Of its records and of what its processes print.
      optimizer: The name of its factory.
      processes: How many share the four devices.
      *more: Further arguments of `train.py`.
    """

    def __init__(self, folder, optimizer, processes, *more):
        folder.mkdir()
        self._folder, self._processes, self._optimizer = folder, processes, optimizer
        self._more = [str(x) for x in more]
        self._started = []

    def __enter__(self):
        self._deadline = time.monotonic() + SECONDS
        port = free_port() if self._processes > 1 else 0
        try:
            for number in range(self._processes):
                self._started.append(self._start(number, port))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()

    def wait(self):
        """Waits until all processes have ended well; raises as soon as one has not."""
        self._until_ended(range(self._processes), 0)

    def wait_for_death(self):
        """Waits until process 1 has killed itself. Others may wait for it then, or fail."""
        self._until_ended([1], -signal.SIGKILL)

    def records(self):
        """What was written of every step so far, in order."""
        lines = self._records.read_text().splitlines() if self._records.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def _records(self):
        return self._folder / "records.jsonl"

    def _start(self, number, port):
        command = [sys.executable, "-m", "tests.distributed.train"]
        command += ["--process", str(number), "--processes", str(self._processes)]
        command += ["--port", str(port)]
        command += ["--devices-per-process", str(DEVICES // self._processes)]
        command += ["--optimizer", self._optimizer, "--steps", str(STEPS)]
        command += ["--out", str(self._records), *self._more]
        with open(self._output(number), "w") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _output(self, number):
        return self._folder / f"process-{number}.txt"

    def _until_ended(self, numbers, expected):
        codes = [None]
        while None in codes:
            time.sleep(0.05)
            codes = [self._started[number].poll() for number in numbers]
            wrong = any(code not in (None, expected) for code in codes)
            if wrong or time.monotonic() > self._deadline:
                why = "ended in the wrong way" if wrong else f"took longer than {SECONDS} s"
                codes = [process.poll() for process in self._started]
                raise AssertionError(f"Processes {why}: exit codes {codes}.\n{self._tails()}")

    def _tails(self):
        self.__exit__()  # so that all that they print is there
        return "\n".join(
            f"--- process {number} ---\n{self._output(number).read_text()[-4000:]}"
            for number in range(self._processes)
        )


def environment():
    """The environment of this process without what would make JAX or gRPC do something else."""
    # gRPC would look for a proxy's way to this machine, too.
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_")) and not name.lower().endswith("_proxy")
    } | {"JAX_PLATFORMS": "cpu"}


def free_port():
    """A port on which nobody listens.

    Linux draws it at random, so tests beside this one that look for one too get another.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
