"""A tensor of PyTorch as an array of NumPy, wherever it comes from: memory, or a file.

Like `arrays`, this is tested without JAX, under Python 3.11.
"""

import importlib
import sys
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """A tensor of PyTorch that was read from a file, as an array with the strides that it had."""

    array: np.ndarray


def is_tensor(x):
    """Whether it is a tensor of PyTorch, in memory or from a file."""
    return isinstance(x, Tensor) or is_of_torch(x)


def is_of_torch(x):
    """Whether it is a tensor of PyTorch in memory."""
    torch = sys.modules.get("torch")  # without it, there are no tensors in memory
    return torch is not None and isinstance(x, torch.Tensor)


def extent(tensor):
    """The shape of a tensor, and its strides in elements."""
    if is_of_torch(tensor):
        return tuple(tensor.shape), tuple(tensor.stride())
    array = tensor.array
    return array.shape, tuple(stride // array.itemsize for stride in array.strides)


def is_contiguous(tensor):
    """Whether the numbers of a tensor lie in memory in the order of its index."""
    if is_of_torch(tensor):
        return tensor.is_contiguous()
    return tensor.array.flags.c_contiguous


def is_on_gpu(tensor):
    """Whether a tensor is on a device of its own."""
    return is_of_torch(tensor) and tensor.device.type != "cpu"


def is_array(x):
    """Whether it is a tensor, or an array of NumPy or JAX."""
    return is_tensor(x) or (hasattr(x, "__array__") and not isinstance(x, np.generic))


def as_array(tensor, name="tensor", order="storage"):
    """A tensor as a NumPy array, copied only where it must be; other arrays as they are.

    `"storage"` takes the numbers as they lie in memory and gives them the tensor's shape. It needs
    a tensor that fills its piece of memory and has every place there once.
    """
    if not is_tensor(tensor):
        return np.asarray(tensor)
    if is_of_torch(tensor):
        _check_ordinary(tensor, name)
    shape, strides = extent(tensor)
    if order == "logical" or is_contiguous(tensor):
        return _numpy(tensor, name)
    if not _is_dense(shape, strides):
        raise ValueError(
            f"`{name}` has shape {shape} and strides {strides}, which leave gaps in memory or "
            "overlap, so its numbers have no order there. If they are right by their index, pass "
            "`order='logical'`."
        )
    array = _numpy(tensor, name)
    in_memory = np.lib.stride_tricks.as_strided(array, (array.size,), (array.itemsize,))
    return in_memory.reshape(shape)


def _check_ordinary(tensor, name):
    """Raises `ValueError` for a tensor of PyTorch that is in several pieces, or in none."""
    if hasattr(tensor, "full_tensor"):
        raise ValueError(f"`{name}` is sharded over devices. Gather it with `full_tensor()` first.")
    strided = sys.modules["torch"].strided
    if tensor.layout != strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ValueError(
            f"`{name}` is not an ordinary tensor ({tensor.layout}, {tensor.dtype}, on "
            f"{tensor.device}), and states of bitsandbytes are."
        )


def _numpy(tensor, name):
    """The array of a tensor, with its strides if it is dense."""
    if isinstance(tensor, Tensor):
        return tensor.array
    torch, tensor = sys.modules["torch"], tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(importlib.import_module("ml_dtypes").bfloat16)
    try:
        return tensor.numpy()
    except TypeError as error:
        raise ValueError(
            f"`{name}` has dtype {tensor.dtype}, which NumPy does not have."
        ) from error


def _is_dense(shape, strides):
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
