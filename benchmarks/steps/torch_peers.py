"""PyTorch's optimizers, in a process of their own: JAX and PyTorch are not in one environment.

They take their turns as all others do. The process waits for its turn, and is waited for.
"""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import time

from optax_lamblion.demo import contest

PYTHON = pathlib.Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
OF_FAMILY = {
    "lion": ("bitsandbytes Lion8bit", "lion-pytorch Lion"),
    "lamb": ("bitsandbytes LAMB8bit",),
    "adamw": ("bitsandbytes AdamW8bit", "torchao AdamW8bit", "torch AdamW, fused"),
}
WAY = "torch"
_SAMPLE_MS = 20.0
# Threads of PyTorch look for more work for some milliseconds, and so do those of XLA.
_PAUSE_SECONDS = 0.02


class Process:
    """The worker. Use it as a context."""

    def __init__(self, python=PYTHON):
        worker = pathlib.Path(__file__).with_name("torch_worker.py")
        # Threads of OpenMP would spin for a while after a step, beside whoever steps next.
        quiet = os.environ | {"OMP_WAIT_POLICY": "passive", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._process = subprocess.Popen(
            [python, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet
        )
        try:
            about = self.ask("hello", threads=len(os.sched_getaffinity(0)))
        except RuntimeError:
            self.__exit__()
            raise
        self.versions, self.device = about["versions"], about["device"]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # What is asked of a process that has ended cannot be written any more, not even on closing.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, what, **arguments):
        """The answer of the worker.

        Raises:
          RuntimeError: It could not do it; with its reason.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended, and says nothing below
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def of_family(self, family, arrays, absent):
        """Entries of a family; what cannot step on these arrays is added to `absent`."""
        self.ask("drop")
        entries = []
        for name in OF_FAMILY[family]:
            try:
                entries.append(contest.Entry(name, WAY, Optimizer(self, name, arrays)))
            except RuntimeError as error:
                absent[name] = str(error).splitlines()[0]
        return entries


class Optimizer:
    """An optimizer of the worker, as a `timing.Contestant`."""

    def __init__(self, process, name, arrays):
        self._process, self._name, self._calls = process, name, 1
        shapes = list(arrays.shapes.values())
        made = process.ask("make", name=name, shapes=shapes, dtype=arrays.dtype)
        self.state_bytes = made["state_bytes"]

    def warm_up(self):
        """See `timing.Contestant`."""
        ms = [self.sample() for _ in range(2)][-1]  # the worker has taken a step already
        self._calls = min(max(math.ceil(_SAMPLE_MS / ms), 1), 200)
        return self._calls * ms

    def sample(self):
        """See `timing.Contestant`."""
        time.sleep(_PAUSE_SECONDS)
        ms = self._process.ask("sample", name=self._name, calls=self._calls)["ms"]
        time.sleep(_PAUSE_SECONDS)
        return ms
