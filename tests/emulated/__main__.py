"""Emulates the kernels as compiled for one target, and judges them.

    JAX_PLATFORMS=cpu python -m tests.emulated h200 [CHECK ...]

Every check is done with approximate instructions rounded to nearest, and at both ends of their
error. A name stands for all checks that begin with it; those of `checks.long` are done by name
only, or with `--long`. With `--out FILE` what was seen is written as JSON, `{check: {end: {...}}}`,
with `{"error": ...}` where something was wrong.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback

from tests.deviceless import dump


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("checks", nargs="*", help="default: all")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--long", action="store_true", help="those that are not of every day, too")
    parser.add_argument("--list", action="store_true", help="print the names of checks")
    args = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        # Read when JAX is imported, and when a kernel is compiled.
        os.environ["JAX_PLATFORMS"] = "cpu"
        dump.start(folder)
        from tests.emulated import checks

        known = checks.of(args.target)
        if args.checks or args.long:
            known |= checks.long(args.target)
        known = {k: x for k, x in known.items() if k.startswith(tuple(args.checks or ("",)))}
        if args.list:
            print(*known, sep="\n")
            return 0
        results = run(args.target, known)
    if args.out:
        part = args.out.with_name(args.out.name + ".part")
        part.write_text(json.dumps(results, indent=1))
        part.replace(args.out)
        return 0
    return int(any("error" in seen for ends in results.values() for seen in ends.values()))


def run(target, checks):
    """`{check: {end: what was seen}}`."""
    import jax

    from tests.emulated import launching
    from tests.emulated.approximate import End

    # As in all tests.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    results = {}
    with launching.emulated(target) as emulation:
        for name, check in checks.items():
            start, results[name] = time.monotonic(), {}
            for emulation.end in End:
                results[name][emulation.end.name.lower()] = seen = _seen(emulation, check)
                if "error" in seen:
                    print(f"{name}, {emulation.end.name}:\n{seen['error']}", flush=True)
            print(f"{time.monotonic() - start:6.2f} s  {name}", flush=True)
    return results


def _seen(emulation, check):
    emulation.launched, emulation.fault = [], None
    try:
        seen = check()
        if emulation.fault:
            raise emulation.fault
        if not emulation.launched:
            raise AssertionError("No kernel was emulated.")
        return {**seen, "launched": emulation.launched}
    except Exception:  # the other checks have their own results
        return {"error": str(emulation.fault or traceback.format_exc())}


if __name__ == "__main__":
    sys.exit(main())
