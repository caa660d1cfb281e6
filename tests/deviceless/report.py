"""What a step costs for whole models, by what was compiled: a table in Markdown.

    ./dev deviceless --collect-only    # makes the environment
    .venv-deviceless/bin/python -m tests.deviceless.report [MODEL ...] [--whole]

Takes some minutes. Of a model with many tensors and equal layers it compiles one layer and two,
and adds their difference for each further layer. XLA joins some small kernels of different layers,
so the number of kernels is then an estimate (of LAMB's for GPT-2, 3 % too high), while bytes hardly
change. `--whole` compiles all layers: ten minutes more.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

TARGET = "h200"
BANDWIDTH = 4.3e12
MANY = 200  # tensors
SHOWN = ("gpt2-124m", "llama-8b", "resnet50")  # those of docs/kernels.md
HEADER = f"""\
One step in bfloat16, compiled for `{TARGET}`. Floor: these bytes at {BANDWIDTH / 1e12:g} TB/s,
90 % of what an H200's memory is sold for, and nothing for launches.

| model | optimizer | step | kernels | bytes per parameter | floor, ms |
|---|---|---|---:|---:|---:|
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(SHOWN)}")
    parser.add_argument("--whole", action="store_true", help="compile every layer")
    args = parser.parse_args(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"  # `models` imports JAX
    from tests.deviceless import models

    rows = []
    for model in args.models or SHOWN:
        by_layer = models.leaves(model) > MANY and not args.whole
        rows += table_rows(model, models.layers(model) if by_layer else None)
    print(HEADER + "\n".join(rows))


def table_rows(model, layers):
    """Rows of one model. `layers` is None where it is compiled as a whole."""
    from tests.deviceless import cases, models

    parts = (None,) if layers is None else (1, 2)
    wanted = [(optimizer, mode[0]) for optimizer in models.OPTIMIZERS for mode in cases.MODES]
    names = [models.case_name(model, part, *x) for x in wanted for part in parts]
    print(f"compiling {len(names)} steps of {model}", file=sys.stderr)
    costs = {name: cost(name, result) for name, result in compile_cases(names).items()}
    rows = []
    for optimizer, mode in wanted:
        of = [costs[models.case_name(model, part, optimizer, mode)] for part in parts]
        kernels, moved = (
            x[0] if layers is None else x[0] + (layers - 1) * (x[1] - x[0])
            for x in zip(*of, strict=True)
        )
        per_parameter = moved / models.parameters(model)
        title = f"{model}, {models.leaves(model)} tensors"
        about = "" if layers is None else "about "
        rows.append(
            f"| {title} | {optimizer} | {mode} | {about}{kernels} | {per_parameter:.2f} "
            f"| {moved / BANDWIDTH * 1e3:.2f} |"
        )
    return rows


def cost(name, result):
    """`(kernels, bytes)` of the result of a case."""
    from tests.deviceless.compiling import bytes_moved

    if "error" in result:
        raise SystemExit(f"{name}:\n{result['error']}")
    return len(result["facts"]["launches"]), bytes_moved(result["facts"])


def compile_cases(names):
    """Results by name, from a worker."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "facts.json")
        worker = [sys.executable, "-m", "tests.deviceless.worker", TARGET, out, *names]
        subprocess.run(worker, check=True)
        return json.loads(out.read_text())


if __name__ == "__main__":
    main()
