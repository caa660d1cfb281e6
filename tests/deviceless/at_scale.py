"""What a step costs on many GPUs, by programs compiled for them: a table in Markdown.

    ./dev deviceless --collect-only    # makes the environment
    .venv-deviceless/bin/python -m tests.deviceless.at_scale [--out FILE.json]

Takes a quarter of an hour. `sharded.py` says how models are divided. Of a model with many tensors
it compiles 2, 4 and 6 layers: what the last two add has to be what the two before them added, and
is added for the others. XLA joins some small kernels of different layers, so how many kernels there
are is then an estimate; so is the temporary memory, or it is not known. `--whole` compiles all
layers, which takes up to five minutes for a step of 70B.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile

from tests.deviceless import dump

OPTIMIZERS = ("lion8bit", "lamb8bit", "lion32bit", "lamb32bit")
MANY = 400  # tensors
PARTS = (2, 4, 6)  # layers
BANDWIDTH = 4.8e12  # what an H200's memory is sold for, so that no step is faster
HEADER = """\
One step of `apply_fused` in bfloat16, compiled for H200s: what one device has, and does. "Moved"
are bytes of its memory that kernels read and write; "of ideal" is what that is of the least:
gradients read, parameters and state read and written, and for LAMB, whose second pass has to know
norms, parameters and state read once more. Floor: the bytes moved, at 4.8 TB/s, and nothing for
launches.
"""
COLUMNS = {
    "model": "---",
    "devices": "---",
    "optimizer": "---",
    "parameters, MB": "---:",
    "state, MB": "---:",
    "temporary, MB": "---:",
    "moved, MB": "---:",
    "bytes per parameter": "---:",
    "of ideal": "---:",
    "floor, ms": "---:",
    "kernels": "---:",
    "collectives": "---",
    "largest copy, KB": "---:",
}
_XLAS = {"moved", "launches", "temp", "largest_copy", "seconds"}  # decided for all leaves together


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json", help="write numbers too")
    parser.add_argument("--models", nargs="+", default=["8b", "70b"], choices=["8b", "70b"])
    parser.add_argument("--devices", nargs="+", type=int, default=[8, 64, 512], metavar="N")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    parser.add_argument("--layers", type=int, metavar="N", help="only so many of every model")
    parser.add_argument("--whole", action="store_true", help="compile every layer")
    parser.add_argument("--block-size", type=int, default=256, metavar="N")
    parser.add_argument("--auto", action="store_true", help="a mesh with Auto axes, not Explicit")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        # Read when JAX is imported. On the platform `cpu` the CUDA plugin asks for no driver.
        os.environ["JAX_PLATFORMS"] = "cpu"
        dump.start(folder)
        rows = costs(args, folder)
    print(HEADER)
    for line in (COLUMNS, COLUMNS.values(), *map(cells, rows)):
        print(f"| {' | '.join(line)} |")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


def costs(args, folder):
    """For every row of the table, what it is about, and the `sharded.cost` of it."""
    from jax.sharding import AxisType

    from tests.deviceless import sharded

    rows = []
    for model_name in args.models:
        model = sharded.MODELS[model_name]
        layers = args.layers or model.layers
        estimated = len(model.shapes(layers)) > MANY and not args.whole
        title = model.name if layers == model.layers else f"{model.name}[:{layers}]"
        for devices in args.devices:
            mesh = sharded.make_mesh(devices, AxisType.Auto if args.auto else AxisType.Explicit)
            for optimizer in args.optimizers:
                print(f"{title}, {devices} devices, {optimizer}", file=sys.stderr)
                compiled = [
                    sharded.cost(mesh, model, optimizer, folder, part, args.block_size)
                    for part in (PARTS if estimated else [layers])
                ]
                found = estimate(layers, *compiled) if estimated else compiled[0]
                about = {"model": title, "mesh": dict(mesh.shape), "optimizer": optimizer}
                rows.append(about | {"estimated": estimated} | found)
    return rows


def estimate(layers, *costs):
    """The cost of a step for so many layers, from the costs for `PARTS`.

    Raises:
      ValueError: Numbers do not grow by the same from part to part: bytes moved up to a thousandth,
        and exactly what XLA has no choice in.
    """
    import jax

    def further(path, a, b, c):
        name = path[0].key
        off = abs((c - b) - (b - a))
        if off > (c - b) / 1000 if name == "moved" else off and name not in _XLAS:
            raise ValueError(f"{jax.tree_util.keystr(path)} for {PARTS} layers: {a}, {b}, {c}.")
        if name == "temp" and off > (c - b) / 100:
            return None
        if name == "largest_copy":
            return max(a, b, c)
        if name == "seconds":
            return round(a + b + c, 1)
        return c + (layers - PARTS[2]) * (c - b) // (PARTS[2] - PARTS[1])

    return jax.tree_util.tree_map_with_path(further, *costs)


def cells(row):
    """A row of the table, as text."""
    sizes = row["mesh"].values()
    about = "about " if row["estimated"] else ""
    collectives = [f"{n} {kind}, {size:,} bytes" for kind, (n, size) in row["collectives"].items()]
    return [
        row["model"],
        f"{math.prod(sizes)} ({' x '.join(map(str, sizes))})",
        row["optimizer"],
        f"{row['parameter_bytes'] / 1e6:,.1f}",
        f"{row['state_bytes'] / 1e6:,.1f}",
        "unknown" if row["temp"] is None else f"{about}{row['temp'] / 1e6:,.2f}",
        f"{row['moved'] / 1e6:,.1f}",
        f"{row['moved'] / row['parameters']:.2f}",
        f"{row['moved'] / row['ideal']:.3f}",
        f"{row['moved'] / BANDWIDTH * 1e3:.3f}",
        f"{about}{row['launches']:,}",
        "; ".join(collectives) or "none",
        f"{row['largest_copy'] / 1e3:.1f}",
    ]


if __name__ == "__main__":
    main()
