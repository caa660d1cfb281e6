"""`python -m benchmarks.growth`: measures all sweeps and keeps them as a record, in 6 minutes."""

import argparse
import sys
import time

import jax

from benchmarks import records
from benchmarks.growth import figures, sweeps

COMMAND = "python -m benchmarks.growth"
SWEEPS = {
    "leaves": lambda: sweeps.leaves((1, 3, 10, 30, 100, 300, 1000, 2000), 300),
    "sizes": lambda: sweeps.sizes((13, 16, 19, 22, 25, 27)),
    "largest": lambda: sweeps.largest(30),
    "pages": lambda: sweeps.pages([2**n for n in (20, 21, 22, 23, 24, 25)]),
    "devices": lambda: sweeps.on_devices((1, 2, 4, 8), 22),
}
QUICK = {
    "leaves": lambda: sweeps.leaves((1, 10), 1),
    "sizes": lambda: sweeps.sizes((13, 16)),
    "largest": lambda: sweeps.largest(30),
    "pages": lambda: sweeps.pages((2**20,)),
    "devices": lambda: sweeps.on_devices((1, 2), 16),
}


def main(arguments=None):
    """Measures, and keeps the record if it is of everything; returns the exit status."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few points, to try it out")
    parser.add_argument("--only", action="append", choices=SWEEPS, help="can be given again")
    parser.add_argument("--draw", action="store_true", help="only the plot of the last record")
    args = parser.parse_args(arguments)
    if args.draw:
        figures.draw()
        return 0
    chosen = QUICK if args.quick else SWEEPS
    start = time.monotonic()
    sweeps.warm_up()
    found = {}
    for name in args.only or chosen:
        found[name] = []
        for point in chosen[name]():
            found[name].append(point)
            print(_line(name, point, time.monotonic() - start), flush=True)
    if args.quick or args.only:
        print("Nothing is kept of a part of the sweeps.")
        return 0
    records.save(f"growth-{jax.default_backend()}", records.new(COMMAND, found))
    figures.draw()
    return 0


def _line(name, point, seconds):
    step = f"{point['median_ms']:9.3f} ms {point['ratio']:6.2f}" if "median_ms" in point else ""
    return (
        f"{seconds:4.0f} s  {name:8} {point['x']:>11,} {point['optimizer']:16} {step:20} "
        f"trace {point['trace_seconds']:6.2f} s, compile {point['compile_seconds']:6.2f} s, "
        f"temporary {point['temporary_bytes']:>13,} bytes"
    )


if __name__ == "__main__":
    sys.exit(main())
