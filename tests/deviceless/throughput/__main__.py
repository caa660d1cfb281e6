"""Prints what the model says of kernels, as tables in Markdown.

    .venv-deviceless/bin/python -m tests.deviceless.throughput [--gpus h200] [--per-thread 8 16 32]

A kernel takes some seconds on a GPU.
"""

import argparse
import os


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    os.environ["JAX_PLATFORMS"] = "cpu"  # `kernels` imports JAX
    from tests.deviceless.throughput import gpus, kernels, tables

    parser.add_argument("--gpus", nargs="+", choices=gpus.GPUS, default=list(gpus.GPUS))
    parser.add_argument("--kernels", nargs="+", choices=kernels.NAMES, default=kernels.NAMES)
    parser.add_argument("--dtypes", nargs="+", choices=kernels.DTYPES, default=kernels.DTYPES)
    parser.add_argument(
        "--per-thread",
        nargs="+",
        type=int,
        choices=kernels.PER_THREAD,
        default=[None],
        help="elements a thread (default: as the code has it)",
    )
    args = parser.parse_args(arguments)
    cells = [
        (kernel, dtype, count)
        for kernel in args.kernels
        for dtype in args.dtypes
        for count in args.per_thread
        if kernels.has(kernel, count)
    ]
    for gpu in args.gpus:
        print(f"\n{gpu}, modelled\n\n{tables.table(gpu, cells)}", flush=True)
    print(f"\n{tables.LEGEND}")


if __name__ == "__main__":
    main()
