"""Files of bitsandbytes' optimizers: from a file to nested dicts of NumPy arrays, and back.

PyTorch writes `.pt`, and is not needed to read it (`torch_files`). A `.safetensors` file holds the
same in this way:

- All numbers and arrays of `state` are tensors, named by their path with dots: `state.0.step`,
  `state.0.state1`, or `state.0.__bnb_optimizer_quant_state__.state1` where they are nested. Numbers
  are tensors without dimensions.
- `param_groups` is JSON, in the entry `param_groups` of the metadata.

Like `arrays`, this is tested without JAX, under Python 3.11.
"""

import contextlib
import importlib
import json
import os
import pathlib
import secrets

import numpy as np

from optax_lamblion._checkpoints.bitsandbytes import torch_files
from optax_lamblion._checkpoints.bitsandbytes.arrays import (
    QUANT_STATE,
    as_arrays,
    as_tensors,
    check_extent,
    is_checkpoint,
    parameter_numbers,
)
from optax_lamblion._checkpoints.bitsandbytes.pickled import Refused

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

_LONGEST_SETTINGS = 2**23  # bytes of JSON
_MOST_TENSORS = 200_000  # read in five seconds


def read(path, *, key=None, order=None):
    """The checkpoint in a file: `{"state": {number: {...}}, "param_groups": [...]}`.

    Arrays may be views of the file; it must not be overwritten while they are in use.

    Args:
      path: A file of `torch.save` (`.pt`, `.pth`, `.bin`, `.ckpt`) or a `.safetensors` file.
      key: Where the optimizer is in a file with more in it, such as `"optimizer"` or
        `"trainer/optimizers/0"`.
      order: How to read slots that are not contiguous, if they do not tell; see `as_arrays`.
    """
    path = pathlib.Path(path)
    is_torch = _is_torch(path)
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder. Name the file in it, such as 'optimizer.pt'.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file '{path}'.")
    if not path.is_file():
        raise ValueError(f"'{path}' is not an ordinary file. Copy what it gives into one.")
    if not is_torch:
        return as_arrays(_load_safetensors(path, key), order=order)
    tree, devices = _load_torch(path)
    return as_arrays(_find(tree, path, key), order=order, saved_on=devices)


def write(path, checkpoint, *, order=None):
    """Writes a checkpoint as its suffix says. A file of that name is replaced in one go, or not.

    Arrays may be NumPy's, JAX's or PyTorch's; for `order` see `as_arrays`. `read` returns what was
    written, but for tuples in `param_groups`: `.safetensors` makes them lists, except for `betas`.
    """
    path = pathlib.Path(path)
    save = _save_torch if _is_torch(path) else _save_safetensors
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{path.parent}' to write '{path.name}' into.")
    checkpoint = as_arrays(checkpoint, order=order)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save(temporary, checkpoint)
        temporary.chmod(mode)  # safetensors lets only the owner read its files
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # or after a crash the name could have no content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _unwritten(path, kind):
    """Says of a library's own errors that it could not write."""
    try:
        yield
    except kind as error:
        raise OSError(f"Writing into '{path.parent}' failed: {error}.") from error


def _is_torch(path):
    if path.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        raise ValueError(
            f"'{path}' ends in {path.suffix!r}. Files here end in {', '.join(TORCH_SUFFIXES)} (of "
            "`torch.save`) or .safetensors; rename it if it is one of them."
        )
    return path.suffix in TORCH_SUFFIXES


def _imported(module, name, path):
    """A module that an extra installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"'{path.name}' needs {name}, which cannot be imported ({error}). Install it with "
            f"`pip install {module.split('.')[0]}`."
        ) from error


def _damaged(path, error):
    """What to say of a file that is not what it should be."""
    with path.open("rb") as file:
        start = file.read(9)
    safetensors_like = start[8:] == b"{"  # after the length of the header, which may be any bytes
    torch_like = not safetensors_like and (start[:4] == torch_files.ZIP or start[:1] == b"\x80")
    is_torch = path.suffix in TORCH_SUFFIXES
    if safetensors_like if is_torch else torch_like:
        return ValueError(
            f"'{path}' is not what its suffix says. It begins like a "
            f"{'.safetensors' if is_torch else '.pt'} file; if it is one, rename it."
        )
    kind = "file of `torch.save`" if is_torch else ".safetensors file"
    return ValueError(
        f"'{path}' ({path.stat().st_size} bytes) is damaged, cut short, or no {kind} at all. "
        "Compare its size with the original's, and copy or save it again. "
        f"({str(error).partition(chr(10))[0]})"
    )


# torch.save


def _load_torch(path):
    """What a file holds, with its tensors, and the devices that they were on."""
    try:
        tree, devices = torch_files.load(path)
    except Refused as error:
        raise ValueError(
            f"'{path}' was refused: it {error}. Nothing in it was executed. Save "
            "`optimizer.state_dict()` in a file of its own; or, if you trust this one, load it "
            "with `torch.load(path, weights_only=False)`, which does execute what it says, and "
            "pass the optimizer's part of the result."
        ) from error
    except Exception as error:  # damage surfaces as nearly any kind, OSError too
        raise _damaged(path, error) from error
    check_extent(tree)
    return tree, devices


def _find(tree, path, key):
    """The optimizer at `key` in what a file holds."""
    at, done = tree, []
    for part in key.split("/") if key else ():
        inside = dict(enumerate(at)) if isinstance(at, list | tuple) else at
        names = {str(name): name for name in inside} if isinstance(inside, dict) else {}
        if part not in names:
            raise ValueError(
                f"'{path}' has no {'/'.join([*done, part])!r}, which `key` names. At "
                f"{'/'.join(done) or 'its top'} there is {', '.join(names) or 'no dict'}."
            )
        at, done = inside[names[part]], [*done, part]
    if not is_checkpoint(at):
        raise _no_optimizer(path, key, list(_places(tree)))
    return at


def _places(tree, where=(), depth=6):
    """Where in a checkpoint there are optimizers."""
    if is_checkpoint(tree):
        yield "/".join(where)
    elif depth and isinstance(tree, dict | list | tuple):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _places(value, (*where, str(name)), depth - 1)


def _no_optimizer(path, key, places):
    if "" in places:
        todo = "They are at its top: pass no `key`."
    elif places:
        todo = f"Pass {' or '.join(f'`key={place!r}`' for place in sorted(places))}."
    else:
        todo = "They are nowhere in it: save what `optimizer.state_dict()` returns."
    where = f"at `key={key!r}`" if key else "at its top"
    return ValueError(f"'{path}' has no `state` and `param_groups` of an optimizer {where}. {todo}")


def _save_torch(path, checkpoint):
    torch = _imported("torch", "PyTorch", path)
    with path.open("wb") as file, _unwritten(path, RuntimeError):
        # Opened by PyTorch, its name would be in the file.
        torch.save(as_tensors(checkpoint), file)


# safetensors


def _load_safetensors(path, key):
    safetensors = _imported("safetensors", "safetensors", path)
    prefix = f"{key.replace('/', '.')}." if key else ""
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            groups = metadata.get(f"{prefix}param_groups")
            if groups is None:
                ends = [name.rpartition("param_groups") for name in metadata]
                places = [start.strip(".").replace(".", "/") for start, middle, end in ends
                          if middle and not end]  # fmt: skip
                raise _no_optimizer(path, key, places)
            state = {}
            names = [name for name in file.keys() if name.startswith(f"{prefix}state.")]
            if len(names) > _MOST_TENSORS:
                raise ValueError(
                    f"'{path}' has {len(names):,} tensors of an optimizer; up to "
                    f"{_MOST_TENSORS:,} are read."
                )
            for name in names:
                if file.get_slice(name).get_dtype() == "BF16":
                    importlib.import_module("ml_dtypes")  # from which NumPy learns of it
                _place(state, name[len(f"{prefix}state.") :], file.get_tensor(name))
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error
    groups = _groups(groups, path)
    try:
        numbers = parameter_numbers({"param_groups": groups})
    except ValueError:  # which whoever needs them will say
        numbers = []
    ordered = {number: state[number] for number in numbers if number in state}
    return {"state": {**ordered, **state}, "param_groups": groups}


def _place(state, name, array):
    """Puts an array where its name says."""
    *number, slot = name.split(".")
    nested = number[-1:] == [QUANT_STATE]
    number = ".".join(number[:-1] if nested else number)  # FSDP has names of parameters here
    slots = state.setdefault(int(number) if number.isdecimal() else number, {})
    if nested:
        slots = slots.setdefault(QUANT_STATE, {})
    if not isinstance(slots, dict) or slot in slots:
        raise ValueError(f"The file has two tensors that are `state.{name}` or a part of it.")
    slots[slot] = array


def _groups(text, path):
    try:
        if len(text) > _LONGEST_SETTINGS:
            raise ValueError(f"they have {len(text):,} characters")
        groups = json.loads(text)
        return [
            {name: tuple(x) if name == "betas" else x for name, x in group.items()}
            for group in groups
        ]
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"The metadata of '{path}' has `param_groups` that are no JSON list of dicts: {error}."
        ) from error


def _save_safetensors(path, checkpoint):
    save_file = _imported("safetensors.numpy", "safetensors", path).save_file
    arrays = dict(_named(checkpoint["state"], ("state",)))
    try:
        groups = json.dumps(checkpoint["param_groups"])
    except TypeError as error:
        raise TypeError(f"`param_groups` cannot be written as JSON: {error}. Use .pt.") from error
    error = importlib.import_module("safetensors").SafetensorError
    with _unwritten(path, error):
        save_file(arrays, str(path), metadata={"format": "pt", "param_groups": groups})


def _named(tree, where):
    for key, value in tree.items():
        here = (*where, str(key))
        if isinstance(value, dict):
            yield from _named(value, here)
            continue
        array = np.asarray(value, order="C")
        if array.dtype.kind in "OUS":
            raise TypeError(
                f"`{'.'.join(here)}` is {value!r}, and .safetensors has only numbers and arrays. "
                "Use .pt."
            )
        yield ".".join(here), array
