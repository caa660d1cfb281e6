"""Executes generated kernels on a CPU: NumPy stands in for the Triton language.

Only what `rules` and `kernel` write is known, and what Triton leaves undefined is an error: an
access outside of an array, a masked element that nothing stands for, two dtypes in one operation,
two programs that meet in one element, a claim about addresses that is not true.
"""

import contextlib
import functools
import math
import types
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.tiled import step as tiled
from pallas_kernels.triton import launch
from pallas_kernels.triton import step as triton_step


class Tensor(np.ndarray):
    """A value of Triton: numbers of Python take its dtype, and nothing else has another one."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        dtypes = {x.dtype for x in inputs if isinstance(x, Tensor)}
        assert len(dtypes) == 1, f"{ufunc.__name__} of {dtypes}"
        arrays = (x.view(np.ndarray) if isinstance(x, Tensor) else x for x in inputs)
        kwargs.pop("out", None)  # `+=` makes a new value, of another shape perhaps
        return tensor(getattr(ufunc, method)(*arrays, **kwargs))

    def to(self, dtype, bitcast=False):
        return self.view(dtype) if bitcast else self.astype(dtype)


def tensor(x, dtype=None):
    return np.asarray(x, dtype).view(Tensor)


class Memory:
    """An array, and which program has written an element."""

    def __init__(self, array):
        self.array = np.array(array).reshape(-1)
        self.writer = np.full(self.array.size, -1)


class Pointer(NamedTuple):
    """The addresses of elements, and the program that has them."""

    memory: Memory
    program: int
    at: Any = 0

    def __add__(self, offset):
        return self._replace(at=self.at + np.asarray(offset, np.int64))

    def select(self, mask):
        """Which elements are meant, and the indices of these."""
        at = np.asarray(self.at)
        mask = np.broadcast_to(True if mask is None else mask, at.shape)
        index = at[mask]
        assert np.all((index >= 0) & (index < self.memory.array.size)), "outside of an array"
        writer = self.memory.writer[index]
        assert np.all((writer == -1) | (writer == self.program)), "two programs, one element"
        return mask, index


def load(pointer, mask=None, other=None):
    inside, index = pointer.select(mask)
    assert inside.all() or other is not None, "a masked element that nothing stands for"
    out = np.full(inside.shape, 0 if other is None else other, pointer.memory.array.dtype)
    out[inside] = pointer.memory.array[index]
    return tensor(out)


def store(pointer, value, mask=None):
    inside, index = pointer.select(mask)
    assert value.dtype == pointer.memory.array.dtype, f"{value.dtype} where it is to be another"
    assert value.shape == inside.shape and np.unique(index).size == index.size
    pointer.memory.array[index] = value[inside]
    pointer.memory.writer[index] = pointer.program


def arange(start, end):
    assert start == 0 and math.log2(end).is_integer()
    return tensor(np.arange(end, dtype=np.int32))


def multiple_of(x, factors):
    if isinstance(factors, tuple):
        *ones, group = factors
        assert set(ones) == {1}
        x_of_groups = x.reshape(*x.shape[:-1], -1, group)[..., 0]
    else:
        x_of_groups, group = x, factors
    assert np.all(x_of_groups % group == 0)
    return x


def max_contiguous(x, factors):
    *ones, group = factors
    assert set(ones) == {1}
    assert np.all(np.diff(x.reshape(*x.shape[:-1], -1, group)) == 1)
    return x


def where(condition, x, y):
    given = [v for v in (x, y) if isinstance(v, Tensor)]
    kinds = {bool: np.bool_, int: np.int32, float: np.float32}
    # Of two numbers of Python, Triton takes their own dtypes.
    (dtype,) = {v.dtype for v in given} or {np.dtype(kinds[type(v)]) for v in (x, y)}
    return tensor(np.where(condition, np.asarray(x, dtype), np.asarray(y, dtype)))


def reduce(x, axis, combine):
    """By halves, as threads do it."""
    x = np.moveaxis(x, axis, 0)
    while len(x) > 1:
        half = len(x) // 2
        x = combine(x[:half], x[half:])
    return tensor(x[0])


def _extreme(function):
    def extreme(x, y, propagate_nan):
        assert propagate_nan == "all"
        return function(x, y)

    return extreme


def _language(program):
    return types.SimpleNamespace(
        program_id=lambda axis: tensor([program][axis], np.int32),
        arange=arange,
        load=load,
        store=store,
        multiple_of=multiple_of,
        max_contiguous=max_contiguous,
        where=where,
        reduce=reduce,
        sum=lambda x, axis: reduce(x, axis, np.add),
        full=lambda shape, value, dtype: tensor(np.full(shape, value, dtype)),
        broadcast_to=lambda x, shape: tensor(np.broadcast_to(x, shape)),
        maximum=_extreme(np.maximum),
        minimum=_extreme(np.minimum),
        PropagateNan=types.SimpleNamespace(ALL="all"),
        **dict(abs=np.abs, sqrt=np.sqrt, exp2=np.exp2, div_rn=np.divide),
        **{name: getattr(np, name) for name in ("float16", "float32", "int8", "int16", "int32")},
        **{name: getattr(np, name) for name in ("int64", "uint8", "uint16", "uint32")},
        **dict(int1=np.bool_, bfloat16=ml_dtypes.bfloat16),
    )


@functools.cache
def _compiled(source):
    return compile(source, "<a generated kernel>", "exec")


def run(kernel, arrays):
    """What is in the memory of all pointers once every program of a kernel is through."""
    memories = [Memory(x) for x in arrays]
    names = dict(triton=types.SimpleNamespace(jit=lambda f: f), largest=np.maximum, log2=np.log2)
    with np.errstate(all="ignore"):
        for program in reversed(range(kernel.cut.tiles)):  # as good an order as any
            names["tl"] = _language(program)
            exec(_compiled(kernel.source), names)
            names[kernel.name](*(Pointer(x, program) for x in memories))
    return memories


def call(kernel, operands, result_types):
    """As `launch.call`."""
    is_ref = [hasattr(jax.typeof(x), "inner_aval") for x in operands]
    refs = [x for x, yes in zip(operands, is_ref, strict=True) if yes]

    def launched(*arrays):
        new = [np.zeros(x.shape, x.dtype) for x in result_types]
        memories = run(kernel, [*arrays, *new])
        for memory in memories[len(operands) :]:
            assert np.all(memory.writer >= 0), "an element that no program has written"
        kept = [m for m, yes in zip(memories, is_ref, strict=False) if yes]
        kept += memories[len(operands) :]
        return [m.array.reshape(x.shape) for m, x in zip(kept, made, strict=True)]

    arrays = [x[...] if yes else x for x, yes in zip(operands, is_ref, strict=True)]
    made = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*refs, *result_types)]
    out = jax.pure_callback(launched, made, *arrays, vmap_method="sequential")
    for ref, x in zip(refs, out, strict=False):
        ref[...] = x
    return tuple(out[len(refs) :])


BY_TRITON = types.SimpleNamespace(
    **{
        name: functools.partial(getattr(tiled, name), launch.BACKEND)
        for name in ("step", "moments", "apply")
    }
)
"""As the module `triton.step`, without `jax.vmap`, for which JAX remembers what it has traced."""


def executed(function):
    """The function, with every Triton kernel that it launches executed in NumPy."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "call", call)
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def everywhere():
    """Within, optimizers take Triton kernels wherever a GPU would, and they are executed here.

    Yields a list to which the names of kernels are added.
    """
    launched = []

    def noted(kernel, *args):
        launched.append(kernel.name)
        return call(kernel, *args)

    def choice(implementation, why_not):
        return "xla" if implementation == "xla" or why_not("triton") else "triton"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "call", noted)
        patch.setattr(dispatch, "choice", choice)
        patch.setattr(dispatch, "call", lambda chosen, _, calls, arrays: calls[chosen](*arrays))
        for name in ("step", "moments", "apply"):
            # Functions of their own, as JAX remembers what it has traced by function.
            unjitted = getattr(dispatch, name).__wrapped__
            patch.setattr(dispatch, name, jax.jit(lambda *args, f=unjitted: f(*args)))
            patch.setattr(triton_step, name, getattr(BY_TRITON, name))
        yield launched
