"""`optax-lamblion convert`: from checkpoints of bitsandbytes to those of this package, and back."""

from __future__ import annotations

import argparse
import fnmatch
import pathlib

import jax
import numpy as np

import optax_lamblion
from optax_lamblion import StateOptions
from optax_lamblion._checkpoints.bitsandbytes import files
from optax_lamblion._checkpoints.bitsandbytes.arrays import CAP_NORM, parameter_numbers, slots_of
from optax_lamblion.cli import _names
from optax_lamblion.cli._errors import CommandError, require
from optax_lamblion.cli._output import Table, print_json, print_table, printable
from pallas_kernels.arithmetic.codecs import CODEC_NAMES

_SUFFIXES = (*files.TORCH_SUFFIXES, ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `convert`."""
    parser.add_argument(
        "source",
        metavar="FROM",
        type=pathlib.Path,
        help="a .pt or .safetensors file of bitsandbytes, or an Orbax checkpoint with a Lion",
    )
    parser.add_argument(
        "target",
        metavar="TO",
        type=pathlib.Path,
        nargs="?",
        help="a .pt or .safetensors file for bitsandbytes, or a new folder for Orbax; "
        "without it, shows what the file holds",
    )
    parser.add_argument(
        "--names",
        metavar="FILE",
        type=pathlib.Path,
        help="paths of the parameters, such as encoder/kernel, one a line or as a JSON list, in "
        "the order in which bitsandbytes' optimizer got them",
    )
    parser.add_argument(
        "--transpose",
        metavar="PATTERN",
        action="append",
        default=[],
        help="parameters that are matrices and stored the other way round here, such as '*kernel'",
    )
    parser.add_argument("--key", help="where in the file the optimizer is, such as optimizer")
    parser.add_argument(
        "--order",
        choices=["storage", "logical"],
        help="how slots are ordered that are not contiguous (found out, if not given)",
    )
    parser.add_argument(
        "--optimizer",
        choices=["lion", "lamb", "adamw"],
        help="that is to go on with the state; Adam goes on as adamw (found out, if not given)",
    )
    parser.add_argument("--bits", type=int, choices=[8, 32], help="of the state that is written")
    parser.add_argument("--codec", choices=CODEC_NAMES, default="dynamic", help="of its codes")
    parser.add_argument("--block-size", type=int, default=256, help="elements that share a scale")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Converts, or shows what there is to convert."""
    try:
        return _run(args)
    except BrokenPipeError:
        raise
    # Errors of the library say what to do; here they are answers to what was typed.
    except (ValueError, TypeError, OSError, ImportError, MemoryError, RecursionError) as error:
        raise CommandError(str(error)) from error


def _run(args):
    is_file = args.source.suffix in _SUFFIXES and not args.source.is_dir()
    to_file = args.target is not None and args.target.suffix in _SUFFIXES
    if args.target is not None and args.target.exists():
        raise CommandError(f"'{args.target}' is there already. Name another one, or remove it.")
    if not is_file:
        return _export(args, to_file)
    checkpoint = files.read(args.source, key=args.key, order=args.order)
    names = _names.read(args.names) or [str(number) for number in parameter_numbers(checkpoint)]
    _show(args, checkpoint, names)
    if args.target is None:
        return 0
    if to_file:
        files.write(args.target, checkpoint)
    else:
        state, call = _imported(args, checkpoint, names)
        _orbax().save_state(args.target, state)
        if not args.json:
            print(f"The state is that of {call}. It goes on with")
            print("    convert_state(checkpointer.restore(path), params, tx)")
    if not args.json:
        print(f"Wrote {printable(str(args.target))}.")
    return 0


def _entries(checkpoint):
    """The number and the slots of every parameter that has some."""
    for number, entry in checkpoint["state"].items():
        yield number, slots_of(entry)


def _show(args, checkpoint, names):
    """A table of what a checkpoint holds."""
    called = dict(zip(parameter_numbers(checkpoint), names, strict=False))
    rows = []
    for number, entry in _entries(checkpoint):
        moments = [entry[key] for key in ("state1", "state2") if key in entry]
        scales = entry.get("absmax1", entry.get("max1"))
        rows.append(
            {
                "parameter": called.get(number, str(number)),
                "shape": list(np.shape(moments[0])) if moments else None,
                "moments": len(moments),
                "bits": 8 * moments[0].dtype.itemsize if moments else None,
                "scales": None if scales is None else int(np.size(scales)),
                "step": entry.get("step"),
            }
        )
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in checkpoint["param_groups"]
    ]
    if args.json:
        print_json({"file": str(args.source), "parameters": rows, "groups": groups})
        return
    table = Table(
        printable(str(args.source)), ["parameter", "shape", "moments", "bits", "scales", "step"]
    )
    for row in rows:
        shape = row["shape"]
        table.add(
            row["parameter"],
            "?" if shape is None else "x".join(map(str, shape)) or "scalar",
            *(str(row[key]) if row[key] is not None else "" for key in table.columns[2:]),
        )
    print_table(table)
    for i, group in enumerate(groups):
        settings = ", ".join(f"{key}={value}" for key, value in group.items())
        print(printable(f"group {i}: {settings}"))


def _imported(args, checkpoint, names):
    """A state of this package, and the optimizer that it is of, in words."""
    moments = [entry["state1"] for _, entry in _entries(checkpoint) if "state1" in entry]
    if not moments or len(moments) < len(checkpoint["state"]):
        raise CommandError(
            f"'{args.source}' has no `state1` for some parameter: no state to import."
        )
    family = args.optimizer or _family(args, checkpoint)
    bits = args.bits or (8 if any(x.dtype == np.uint8 for x in moments) else 32)
    options = StateOptions(block_size=args.block_size, codec=args.codec)
    called = dict(zip(parameter_numbers(checkpoint), names, strict=False))
    adapt = _transposer(args.transpose)
    shapes = {}
    for number, entry in _entries(checkpoint):
        path = called.get(number, str(number))
        shape = adapt(path, np.broadcast_to(np.float32(0), entry["state1"].shape)).shape
        shapes[path] = jax.ShapeDtypeStruct(shape, np.float32)
    params = _names.as_tree(shapes)
    factory = getattr(optax_lamblion, f"{family}{bits}bit")
    given = f'options=StateOptions(block_size={options.block_size}, codec="{options.codec}")'
    state = optax_lamblion.from_bitsandbytes(
        checkpoint,
        params,
        factory(**({"options": options} if bits == 8 else {})),
        names=names,
        adapt=adapt,
    )
    return state, f"{factory.__name__}({given if bits == 8 else ''})"


def _family(args, checkpoint):
    """The optimizer that a state is of, by what is kept."""
    entries = [entry for _, entry in _entries(checkpoint)]
    if not any("state2" in entry for entry in entries):
        return "lion"
    # LAMB and Adam are one class over there, and their groups hold the same settings. But the norm
    # that caps a step of LAMB has a place in the state.
    capped = {CAP_NORM in entry for entry in entries}
    if len(capped) > 1:
        raise CommandError(
            f"'{args.source}' has `{CAP_NORM}`, which LAMB keeps and Adam does not, for some "
            "parameters only. Pass `--optimizer lamb` or `--optimizer adamw`."
        )
    return "lamb" if capped == {True} else "adamw"


def _transposer(patterns):
    def adapt(path, x):
        if any(fnmatch.fnmatch(path, pattern) for pattern in patterns) and np.ndim(x) == 2:
            return x.T
        return x

    return adapt


def _export(args, to_file):
    """From an Orbax checkpoint of a state of Lion to a file for bitsandbytes."""
    if not args.source.is_dir():
        known = ", ".join(_SUFFIXES)
        raise CommandError(
            f"'{args.source}' is neither a file that ends with one of {known} nor a folder."
        )
    if not to_file or args.names is None:
        raise CommandError(
            "an Orbax checkpoint becomes a file for bitsandbytes: name one that ends with .pt or "
            ".safetensors, and `--names FILE` with the parameters in the order over there."
        )
    names = _names.read(args.names) or []
    state = _orbax().restore_lion(args.source)
    checkpoint = optax_lamblion.to_bitsandbytes(
        state, names=names, adapt=_transposer(args.transpose)
    )
    files.write(args.target, checkpoint)
    _show(args, checkpoint, names)
    if not args.json:
        print(f"Wrote {printable(str(args.target))}.")
        print("Set `lr`, `betas` and `weight_decay` when it is loaded.")
    return 0


def _orbax():
    """The module that needs Orbax, or an error that says how to get it."""
    require({"orbax.checkpoint": "orbax-checkpoint"})
    from optax_lamblion.cli import _orbax as module

    return module
