"""`optax-lamblion convert`: from checkpoints of bitsandbytes to those of this package, and back."""

from __future__ import annotations

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
from optax_lamblion.cli._options import ConvertOptions
from optax_lamblion.cli._output import Table, print_json, print_table, printable

_SUFFIXES = (*files.TORCH_SUFFIXES, ".safetensors")


def run(source: pathlib.Path, target: pathlib.Path | None, options: ConvertOptions) -> int:
    """Converts, or shows what there is to convert."""
    try:
        return _run(source, target, options)
    except BrokenPipeError:
        raise
    # Errors of the library say what to do; here they are answers to what was typed.
    except (ValueError, TypeError, OSError, ImportError, MemoryError, RecursionError) as error:
        raise CommandError(str(error)) from error


def _run(source, target, options):
    is_file = source.suffix in _SUFFIXES and not source.is_dir()
    to_file = target is not None and target.suffix in _SUFFIXES
    if target is not None and target.exists():
        raise CommandError(f"'{target}' is there already. Name another one, or remove it.")
    if not is_file:
        return _export(source, target, options, to_file)
    checkpoint = files.read(source, key=options.key, order=options.order)
    names = _names.read(options.names) or [str(number) for number in parameter_numbers(checkpoint)]
    _show(source, options, checkpoint, names)
    if target is None:
        return 0
    call = None
    if to_file:
        files.write(target, checkpoint)
    else:
        state, call = _imported(source, options, checkpoint, names)
        _orbax().save_state(target, state)
    if not options.json:
        print(f"Wrote {printable(str(target))}.")
        if call:
            print("Continue with the state by")
            print(f"    tx = {call}")
            print("    opt_state = convert_state(checkpointer.restore(path), params, tx)")
    return 0


def _entries(checkpoint):
    """The number and the slots of every parameter that has some."""
    for number, entry in checkpoint["state"].items():
        yield number, slots_of(entry)


def _show(source, options, checkpoint, names):
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
    if options.json:
        print_json({"file": str(source), "parameters": rows, "groups": groups})
        return
    table = Table(
        printable(str(source)), ["parameter", "shape", "moments", "bits", "scales", "step"]
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


def _imported(source, options, checkpoint, names):
    """A state of this package, and the optimizer that it is of, in words."""
    moments = [entry["state1"] for _, entry in _entries(checkpoint) if "state1" in entry]
    if not moments or len(moments) < len(checkpoint["state"]):
        raise CommandError(f"'{source}' has no `state1` for some parameter: no state to import.")
    family = options.optimizer or _family(source, checkpoint)
    bits = options.bits or (8 if any(x.dtype == np.uint8 for x in moments) else 32)
    state_options = StateOptions(block_size=options.block_size, codec=options.codec)
    called = dict(zip(parameter_numbers(checkpoint), names, strict=False))
    adapt = _transposer(options.transpose)
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
        factory(**({"options": state_options} if bits == 8 else {})),
        names=names,
        adapt=adapt,
    )
    return state, f"{factory.__name__}({given if bits == 8 else ''})"


def _family(source, checkpoint):
    """The optimizer that a state is of, by what is kept."""
    entries = [entry for _, entry in _entries(checkpoint)]
    if not any("state2" in entry for entry in entries):
        return "lion"
    # LAMB and Adam are one class over there, and their groups hold the same settings. But the norm
    # that caps a step of LAMB has a place in the state.
    capped = {CAP_NORM in entry for entry in entries}
    if len(capped) > 1:
        raise CommandError(
            f"'{source}' has `{CAP_NORM}`, which LAMB keeps and Adam does not, for some "
            "parameters only. Pass `--optimizer lamb` or `--optimizer adamw`."
        )
    return "lamb" if capped == {True} else "adamw"


def _transposer(patterns):
    def adapt(path, x):
        if any(fnmatch.fnmatch(path, pattern) for pattern in patterns) and np.ndim(x) == 2:
            return x.T
        return x

    return adapt


def _export(source, target, options, to_file):
    """From an Orbax checkpoint of a state of Lion to a file for bitsandbytes."""
    if not source.is_dir():
        known = ", ".join(_SUFFIXES)
        raise CommandError(
            f"'{source}' is neither a file that ends with one of {known} nor a folder."
        )
    if not to_file or options.names is None:
        raise CommandError(
            "an Orbax checkpoint becomes a file for bitsandbytes: name one that ends with .pt or "
            ".safetensors, and `--names FILE` with the parameters in the order over there."
        )
    names = _names.read(options.names) or []
    state = _orbax().restore_lion(source)
    checkpoint = optax_lamblion.to_bitsandbytes(
        state, names=names, adapt=_transposer(options.transpose)
    )
    files.write(target, checkpoint)
    _show(source, options, checkpoint, names)
    if not options.json:
        print(f"Wrote {printable(str(target))}.")
        print("Set `lr`, `betas` and `weight_decay` when it is loaded.")
    return 0


def _orbax():
    """The module that needs Orbax, or an error that says how to get it."""
    require({"orbax.checkpoint": "orbax-checkpoint"})
    from optax_lamblion.cli import _orbax as module

    return module
