"""Runs parts in this process and appends what they find to a file. `__main__` starts it.

python -m tests.gpu.worker --records FILE --seconds N PART [PART ...]
"""

import argparse
import faulthandler
import importlib.util
import pathlib
import signal
import sys
import time
import types

from tests.gpu.parts import PARTS
from tests.gpu.records import Records, Run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--leaves", type=int, default=16)
    parser.add_argument("--shape", type=int, nargs=2, default=(8192, 8192))
    parser.add_argument("parts", nargs="+", choices=PARTS)
    args = parser.parse_args()
    # Whoever ends this process for taking too long learns where it was.
    faulthandler.register(signal.SIGTERM, chain=True)
    stand_in_for_pytest()
    run = Run(args.quick, args.interpret, args.leaves, tuple(args.shape))
    deadline = time.monotonic() + args.seconds
    for name in args.parts:
        part, records = PARTS[name], Records(args.records, name, deadline)
        if part.kind == "check":
            for what, function in part.items(run):
                records.do("check", what, function)
        elif name.startswith("torch"):
            for what, function in part.items(run):
                records.do("timing", what, function, peer=True)
        else:
            from tests.gpu import timing

            timing.measure(part, run, records)


def stand_in_for_pytest():
    """Lets the judges of the other tests be imported where pytest is not installed.

    Some of their modules make marks while they are imported; nothing here runs those.
    """
    if importlib.util.find_spec("pytest") is not None:
        return

    def decorator(*args, **kwargs):
        return lambda function: function

    class StandIn(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return decorator

    stand_in = StandIn("pytest")
    vars(stand_in)["mark"] = StandIn("mark")
    sys.modules["pytest"] = stand_in


if __name__ == "__main__":
    main()
