"""Checkpoints of bitsandbytes' optimizers in memory: tensors of PyTorch as NumPy arrays, and back.

A checkpoint is what `optimizer.state_dict()` returns: `state`, a dict of the slots of each
parameter by its number, and `param_groups`, a list of settings. What slots mean is not known here.

**Order.** A slot has the strides that its parameter had before the first step; bitsandbytes makes
the parameter itself contiguous then. On a GPU it goes by place in memory: to the parameter's
element `i` belongs the slot's `i`-th number there, whatever its index is. Its CPU build, which
these optimizers have since 0.50, goes by the index. Where the strides of a slot are not those of a
contiguous tensor, the two differ.

This file and those that it and `files` import are tested with PyTorch and without JAX, under Python
3.11: they import neither JAX nor other parts of the package, and have no syntax of later versions.
"""

import importlib
from typing import Any

import numpy as np

from optax_lamblion._checkpoints.bitsandbytes.tensors import (
    Tensor,
    as_array,
    extent,
    is_array,
    is_contiguous,
    is_of_torch,
    is_on_gpu,
    is_tensor,
)

QUANT_STATE = "__bnb_optimizer_quant_state__"
"""Where bitsandbytes 0.49.2 and later keep all of a parameter's state but `step`."""

SLOTS = ("state1", "state2")
"""What has the shape of its parameter, which may be that of a single number."""

CAP_NORM = "unorm_vec"
"""What an optimizer keeps whose steps have a capped norm. Of those with two slots that is LAMB."""

ORDERS = ("storage", "logical")

MOST_ITEMS, DEEPEST = 1_000_000, 32
"""What a checkpoint may hold, counted as often as it is mentioned, and how deep it may be."""


def check_extent(tree):
    """Raises `ValueError` unless a tree is small enough to be walked through, and has no end.

    A few bytes of a file can make lists that hold each other a billion times over, or themselves.
    """
    count, layer = 0, [tree]
    for _ in range(DEEPEST):
        inside = [_children(node) for node in layer]
        count += sum(map(len, inside))
        if count > MOST_ITEMS:
            break
        layer = [x for children in inside for x in children]
        if not layer:
            return
    raise ValueError(
        f"There are more than {MOST_ITEMS:,} entries in it, or more than {DEEPEST} inside of each "
        "other, which is no checkpoint of an optimizer."
    )


def _children(node):
    """What is in a container."""
    if isinstance(node, Tensor):
        return ()
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def is_checkpoint(tree):
    """Whether this is what `optimizer.state_dict()` returns."""
    return isinstance(tree, dict) and "state" in tree and "param_groups" in tree


def slots_of(entry):
    """What there is of a parameter, without the layer that newer versions add."""
    outside = {key: value for key, value in entry.items() if key != QUANT_STATE}
    return {**outside, **entry.get(QUANT_STATE, {})}


def parameter_numbers(checkpoint):
    """The numbers of all parameters, in the order in which the optimizer got them."""
    groups = [group.get("params") for group in checkpoint["param_groups"]]
    if all(isinstance(group, list | tuple) for group in groups):
        numbers = [number for group in groups for number in group]
        if all(isinstance(number, int | str) for number in numbers):
            return numbers
    raise ValueError(
        "The `param_groups` of the checkpoint do not say which `params` they have. Pass all of "
        "what `optimizer.state_dict()` returned."
    )


def as_arrays(checkpoint, *, order=None, saved_on=()):
    """A checkpoint with NumPy arrays for its tensors, and Python numbers for its numbers.

    Arrays share the memory of tensors on the CPU, so a later step of the optimizer changes them.

    Args:
      checkpoint: What `optimizer.state_dict()` returned, with tensors on any device. Arrays of
        NumPy and JAX do not come from PyTorch, and are what they are by their index.
      order: How to read slots that are not contiguous: `"storage"`, by place in memory, or
        `"logical"`, by index. None finds out. 8-bit slots tell by their scales, as the largest
        element of a block has one of the outermost codes; the rest goes with them. Others tell by
        the version and the device that they are from, or have to be asked for.
      saved_on: The devices that tensors now on the CPU were on.
    """
    if not is_checkpoint(checkpoint):
        raise ValueError(
            "A checkpoint is a dict with `state` and `param_groups`. Pass what "
            "`optimizer.state_dict()` returned."
        )
    if order not in (None, *ORDERS):
        raise ValueError(f"`order` must be 'storage', 'logical' or None, got {order!r}.")
    check_extent(checkpoint)
    state, groups = checkpoint["state"], checkpoint["param_groups"]
    _check_kinds(state, groups)
    order = order or _order(state, saved_on)
    return {
        "state": {
            number: _slots(slots, f"state.{number}", order) for number, slots in state.items()
        },
        "param_groups": [
            {name: _setting(value) for name, value in group.items()} for group in groups
        ],
    }


def _check_kinds(state, groups):
    """Raises `TypeError` where something of a checkpoint is another kind of thing."""
    if not isinstance(state, dict):
        raise TypeError(f"`state` must be a dict, got {type(state).__name__}.")
    for number, slots in state.items():
        if not isinstance(number, int | str) or not isinstance(slots, dict):
            raise TypeError(
                "`state` must map the numbers of parameters to dicts, got "
                f"{type(number).__name__} and {type(slots).__name__}. Pass "
                "`optimizer.state_dict()`, not `optimizer.state`."
            )
        if not isinstance(nested := slots.get(QUANT_STATE, {}), dict):
            raise TypeError(
                f"`state.{number}.{QUANT_STATE}` must be a dict, got {type(nested).__name__}."
            )
        for slot, value in slots_of(slots).items():
            if slot in _ARRAYS and not is_array(value):
                raise TypeError(
                    f"`state.{number}.{slot}` must be a tensor, got {type(value).__name__}."
                )
    if not isinstance(groups, list | tuple) or not all(isinstance(x, dict) for x in groups):
        raise TypeError("`param_groups` must be a list of dicts.")


_ARRAYS = {f"{name}{i}" for name in ("state", "qmap", "absmax", "max") for i in (1, 2)}


def _slots(slots, name, order):
    result = {}
    for key, value in slots.items():
        where = f"{name}.{key}"
        if isinstance(value, dict):
            value = _slots(value, where, order)
        elif is_array(value):
            value = as_array(value, where, order)
            if not value.ndim and key not in SLOTS:
                value = value.item()
        elif isinstance(value, np.generic):
            value = value.item()
        result[key] = value
    return result


def _setting(value):
    if is_array(value):
        value = as_array(value)
        if value.size > MOST_ITEMS:
            raise ValueError(f"`param_groups` have a tensor of shape {value.shape} for a setting.")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)([_setting(item) for item in value])
    return value


def _order(state, saved_on):
    """The order of all slots that are not contiguous, or an error where nothing tells it."""
    loose, score = [], dict.fromkeys(ORDERS, 0)
    from_gpu = bool({*saved_on} - {"cpu"})
    for number, entry in state.items():
        slots = slots_of(entry)
        for slot, peaks in zip(SLOTS, ((0, 255), (255,)), strict=True):
            tensor: Any = slots.get(slot)
            if not is_tensor(tensor) or is_contiguous(tensor):
                continue
            name, absmax = f"state.{number}.{slot}", slots.get(f"absmax{slot[-1]}")
            shape, strides = extent(tensor)
            loose.append(f"`{name}` has shape {shape}, strides {strides}")
            # Slots that are not nested are from 0.49.1 or older.
            from_gpu = from_gpu or slot in entry or is_on_gpu(tensor)
            if absmax is not None:
                scales = as_array(absmax, name, "logical").size
                for order in ORDERS:
                    codes = as_array(tensor, name, order)
                    if codes.dtype == np.uint8:
                        score[order] += _peaked(codes, scales, peaks)
    if score["storage"] != score["logical"]:
        return max(ORDERS, key=score.__getitem__)
    if loose and not from_gpu:
        raise ValueError(
            f"{loose[0]}, and nothing here says whether its numbers belong to the parameter by "
            "their place in memory, as after steps on a GPU, or by their index, as after steps of "
            "bitsandbytes' CPU build. Pass `order='storage'` or `order='logical'`."
        )
    return "storage"


def _peaked(codes, scales, peaks):
    """How many blocks have one of the codes that the largest element of a block must have."""
    block_size = 256 if scales == -(-codes.size // 256) else 2048
    is_peak = np.isin(codes.ravel(), peaks)
    starts = np.arange(0, codes.size, block_size)
    return int(np.count_nonzero(np.logical_or.reduceat(is_peak, starts)))


def as_tensors(checkpoint):
    """The other way: with tensors on the CPU, for `torch.save` and `optimizer.load_state_dict`."""
    torch = importlib.import_module("torch")

    def convert(value):
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if is_of_torch(value) or not is_array(value):
            return value
        array = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        if not array.flags.writeable:  # PyTorch has no tensors that cannot be written
            array = array.copy()
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    return {"state": convert(checkpoint["state"]), "param_groups": checkpoint["param_groups"]}
