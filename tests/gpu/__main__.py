"""Checks and times everything on the GPU of this machine, and writes one file of results.

    python -m tests.gpu [--minutes N] [--quick] [--only checks|timings] [--part NAME] [--again]

Every part of it is a process, so that none takes the others' results with it. What is worth most
comes first; a second call goes on where the first one stopped.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from tests.gpu.parts import PARTS
from tests.gpu.suite import ROOT, Suite, child_environment

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
        "--minutes", type=float, default=9, help="end after about so many minutes (9)"
    )
    parser.add_argument(
        "--again", action="store_true", help="do anew what an earlier call has results of"
    )
    jobs = max(2, 3 * (os.cpu_count() or 1) // 4)
    parser.add_argument("--jobs", type=int, default=jobs, help="checks side by side (%(default)s)")
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


if __name__ == "__main__":
    sys.exit(main())
