"""Compiles cases for one target and writes what became of them, as JSON.

    JAX_PLATFORMS=cpu python -m tests.deviceless.worker h200 facts.json [CASE ...]

One target per process, because XLA takes the assembler's settings for a second one from the first.
The file holds, for each case, `{"facts": ..., "kernels": {key: ...}, "seconds": ...}`, or
`{"error": ...}` with the traceback of what went wrong.
"""

import argparse
import json
import os
import pathlib
import subprocess
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
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("cases", nargs="*", help="default: all that are meant for the target")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        # Read when JAX is imported. On the platform `cpu` the CUDA plugin asks for no driver.
        os.environ["JAX_PLATFORMS"] = "cpu"
        dump.start(folder)
        results = compile_cases(args.target, args.cases, folder)
    # Under another name first: who reads the file reads all of it.
    part = args.out.with_name(args.out.name + ".part")
    part.write_text(json.dumps(results, indent=1))
    part.replace(args.out)


def register():
    """Lets the modules that have cases register them."""
    from tests.deviceless import by_triton, clipped, kernels, meshes, models, paged, scaling, small
    from tests.deviceless.throughput import kernels as modelled

    del by_triton, clipped, kernels, meshes, modelled, models, paged, scaling, small


def results(target_name, names):
    """`{name: result}` for each case, compiled in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "facts.json")
        command = [sys.executable, "-m", "tests.deviceless.worker", target_name, out, *names]
        subprocess.run(command, check=True)
        found = json.loads(out.read_text())
    for name, result in found.items():
        if "error" in result:
            raise SystemExit(f"{name}, for {target_name}:\n{result['error']}")
    return found


def compile_cases(target_name, names, folder):
    """`{name: result}` for each case."""
    from tests.deviceless import cases, targets

    register()
    target = targets.TARGETS[target_name]
    mosaic = dump.Dump(folder, target.architecture)
    return {name: compile_case(target, name, mosaic) for name in names or cases.names(target_name)}


def compile_case(target, name, mosaic):
    """The result for one case. `mosaic` is a `dump.Dump`."""
    from tests.deviceless import cases, compiling, hlo, launches, targets

    start = time.monotonic()
    mosaic.forget()  # what a case left that failed
    try:
        case = cases.build(name)
        mesh = (case.mesh or targets.make_mesh)(target)
        executable = compiling.compile_for(
            mesh, case.fn, *case.args, donate=case.donate, out_shardings=case.out_shardings
        )
        made, program = mosaic.new(), hlo.parse(executable.as_text())
        kernels = {kernel.key: kernel.facts() for kernel in made}
        return {
            "facts": compiling.facts(executable, made),
            "kernels": kernels | launches.triton_kernels(program, target.architecture),
            "seconds": round(time.monotonic() - start, 2),
        }
    except Exception:  # the other cases have their own facts
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main()
