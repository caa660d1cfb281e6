"""Import of checkpoints of bitsandbytes' Lion, LAMB and AdamW."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_lamblion._checkpoints.bitsandbytes import files
from optax_lamblion._checkpoints.bitsandbytes.arrays import as_arrays, parameter_numbers
from optax_lamblion._checkpoints.bitsandbytes.slots import (
    MOMENTS,
    adapts,
    our_absmax,
    our_codes,
    unpack,
)
from optax_lamblion._checkpoints.places import put, with_places
from optax_lamblion._checkpoints.recode import (
    SLOTS,
    Source,
    Stored,
    fill,
    is_ours,
    layout_in,
    stored_leaves,
)
from optax_lamblion._paging.memory import abstract_state
from optax_lamblion._state.names import first_names, path_string


def from_bitsandbytes(
    checkpoint: Any,
    params: Any,
    tx: optax.GradientTransformation,
    *,
    names: Sequence[str] | Mapping[Any, str] | None = None,
    adapt: Callable[[str, np.ndarray], np.ndarray] | None = None,
    key: str | None = None,
    order: str | None = None,
    block_size: int | None = None,
    allow_missing: bool = False,
) -> optax.OptState:
    """Imports a checkpoint of bitsandbytes' Lion, LAMB, Adam or AdamW as the state of `tx`.

    Reads what any version of `bitsandbytes.optim` saves for them, paged or not: 8-bit or 32-bit,
    nested or flat, with blocks of 256 or 2048 elements or one scale per tensor, using the code maps
    in the file. LAMB, Adam and AdamW store the same moments, so `tx` decides how training
    continues: use `adamw8bit` for both Adam and AdamW, which take the same steps in bitsandbytes.
    With `StateOptions(codec="dynamic")` and the block size of the checkpoint, every code is
    translated exactly and scales keep their bits. Otherwise moments are decoded and quantized again
    in the layout of `tx`.

    Args:
      checkpoint: A `.pt` file (read without PyTorch; nothing in it is executed), a `.safetensors`
        file, or the result of `optimizer.state_dict()` with PyTorch tensors or NumPy arrays.
      params: Parameters, or their `jax.ShapeDtypeStruct`.
      tx: The transformation to continue with: `adamw8bit(...)`, or a chain that contains it.
      names: The paths of the parameters, such as `"encoder/kernel"`, in the order in which the
        PyTorch optimizer got them (usually that of `model.named_parameters()`); or a mapping from
        their numbers, or names, in the checkpoint to paths. Not needed if `params` has an order: a
        list or tuple of arrays, or a single array.
      adapt: A function of a path and a moment with the shape of the PyTorch parameter that returns
        it with the shape of the JAX parameter, such as
        `lambda path, x: x.T if path.endswith("kernel") else x`. It may only rearrange elements.
      key: The key of the optimizer in a file that contains more, such as `"optimizer"`.
      order: `"storage"` or `"logical"`: the order of elements in non-contiguous tensors.
        bitsandbytes uses memory order on GPUs and index order on CPUs. None detects it, or raises
        if it can't.
      block_size: Elements per scale. None derives it from the number of scales.
      allow_missing: Whether to accept parameters without state, which then start at zero.
        bitsandbytes has no state for parameters that never received a gradient.

    Returns:
      The state of `tx`; other transformations in a chain start fresh. Hyper-parameters such as the
      learning rate are not read: build `tx` with those of the checkpoint.

    Raises:
      TypeError: `checkpoint` is neither a file nor a state dict, or `names` is needed.
      ValueError: The checkpoint is damaged, or belongs to another optimizer or other parameters;
        the message names the entry and the parameter.
      FileNotFoundError: There is no such file.
      ImportError: The library that reads the file is not installed.

    Warns:
      UserWarning: The checkpoint has norms of percentile clipping, but `tx` doesn't clip.

    Examples:
      >>> params = {"dense": {"kernel": jnp.ones((64, 96))}}
      >>> checkpoint = {
      ...     "state": {0: {"step": 5, "state1": np.ones((96, 64), np.float32)}},
      ...     "param_groups": [{"lr": 1e-4, "params": [0]}],
      ... }
      >>> state = from_bitsandbytes(
      ...     checkpoint, params, lion8bit(1e-4), names=["dense/kernel"], adapt=lambda path, x: x.T
      ... )
      >>> state.count, state.mu["dense"]["kernel"].dtype
      (Array(5, dtype=int32), dtype('uint8'))

    References:
      `bitsandbytes.optim <https://huggingface.co/docs/bitsandbytes/reference/optim/lion>`_.
    """
    checkpoint = _read(checkpoint, key, order)
    fresh = with_places(abstract_state(tx, params), params)
    if not any(map(is_ours, jax.tree.leaves(fresh, is_leaf=is_ours))):
        raise TypeError("`tx` has no optimizer of `optax_lamblion` in it; pass one, or a chain.")
    entries = _entries(checkpoint, _names(names, params))
    # Other transformations start anew; ours is not made for nothing.
    others = _of_others(fresh) and jax.jit(lambda p: _of_others(tx.init(p)))(params)
    others = iter(others)

    def convert(like):
        if not is_ours(like):
            return put(next(others), like)
        source = _source(like, entries, adapt, block_size, allow_missing)
        return fill(like, source, layout_in(like))

    state = jax.tree.map(convert, fresh, is_leaf=is_ours)
    if entries:
        path, (number, _) = next(iter(entries.items()))
        raise ValueError(
            f"The checkpoint has state for {number!r}, which `names` calls {path!r}; there is no "
            "such parameter, or `tx` does not optimize it. Parameters are "
            f"{first_names(_paths(params))}."
        )
    return state


_NOT_THE_CALLER = tuple(os.path.dirname(str(x.__file__)) for x in (files, jax))


def _read(checkpoint, key, order):
    if isinstance(checkpoint, str | os.PathLike):
        return files.read(checkpoint, key=key, order=order)
    if not isinstance(checkpoint, Mapping):
        raise TypeError(
            f"`checkpoint` must be a file or a state dict, got {type(checkpoint).__name__}. Pass "
            "what `optimizer.state_dict()` returned, or the file it was saved to."
        )
    if key is not None:
        raise ValueError("`key` is for files. Of a dict pass the item that is the optimizer's.")
    return as_arrays(checkpoint, order=order)


def _paths(tree):
    return [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _names(names, params):
    """`names`, or the order that the parameters have themselves."""
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Sequence | Mapping):
            raise TypeError(
                f"`names` must be a list of paths or a mapping to paths, got {names!r}. For "
                'example `names=["encoder/kernel", "encoder/bias"]`.'
            )
        return names
    paths = _paths(params)
    if len(paths) > 1 and not isinstance(params, list | tuple):
        raise TypeError(
            "`names` must say in which order bitsandbytes got the parameters, which a tree does "
            f"not. Pass the paths in that order: {first_names(paths)} are here in that of the tree."
        )
    return paths


def _entries(checkpoint, names):
    """The number and the entry of every parameter, by its path here."""
    state = checkpoint["state"]
    numbers = parameter_numbers(checkpoint)
    if not isinstance(names, Mapping):
        if len(names) != len(numbers):
            raise ValueError(
                f"The checkpoint is of {len(numbers)} parameters, and `names` has {len(names)}. "
                "Name all of them, in the order in which the optimizer got them."
            )
        names = dict(zip(numbers, names, strict=True))
    if twice := [x for x in names.values() if list(names.values()).count(x) > 1]:
        raise ValueError(f"`names` has {twice[0]!r} more than once.")
    for number in state:
        if number not in names:
            raise ValueError(
                f"The checkpoint has state for {number!r}, of which `names` does not say which "
                "parameter it is."
            )
    return {names[number]: (number, entry) for number, entry in state.items()}


def _source(like, entries, adapt, block_size, allow_missing):
    """What there is for one of our states; takes it out of `entries`."""
    names = [name for name in SLOTS if getattr(like, name, None) is not None]
    if "nu_max" in names:
        raise ValueError(
            "bitsandbytes ignores `amsgrad` and has no maximum to import. Build `tx` without it."
        )
    target = layout_in(like)
    steps, history, fresh = {}, {}, {}
    slots: dict[str, dict[str, Stored]] = {name: {} for name in names}
    for path, form in stored_leaves(like).items():
        if path not in entries:
            fresh[path] = Stored(np.zeros(form[0].shape, np.float32))
            continue
        number, entry = entries.pop(path)
        where = f"state.{number} ({path})"
        entry = unpack(where, entry, names, block_size)
        steps[path] = entry.step
        if entry.gnorm_history is not None:
            history[path] = entry.gnorm_history
        for name, moment in entry.moments.items():
            stored = _stored(moment, path, adapt, form[0], target)
            _check_shape(f"{where}.{MOMENTS[name]}", stored.x.shape, form[0].shape)
            slots[name][path] = stored
    if fresh and not (allow_missing and steps):
        raise ValueError(
            f"The checkpoint has no state for parameter {next(iter(fresh))!r}. If it never had a "
            "gradient, pass `allow_missing=True`, and its state starts at zero."
        )
    if history and like.gnorm_history is None:
        warnings.warn(
            "The checkpoint has the gradient norms of percentile clipping, which `tx` does not do; "
            "they are dropped. Build `tx` with `percentile_clipping` to keep them.",
            skip_file_prefixes=_NOT_THE_CALLER,
        )
    slots = {name: {**leaves, **fresh} for name, leaves in slots.items()}
    return Source(_common_step(steps), slots, history or None)


def _check_shape(where, shape, needed):
    """Raises `ValueError` unless a moment has the shape of its parameter."""
    if shape != needed:
        raise ValueError(
            f"`{where}` has shape {shape}, but the parameter has {needed}. Give it the right one "
            "in `names`; if it is another order of axes, say so: `adapt=lambda path, x: x.T if "
            "path.endswith('kernel') else x`."
        )


def _common_step(steps):
    """The step that all parameters have made."""
    if len(set(steps.values())) > 1:
        a, first = min(steps.items(), key=lambda x: x[1])
        b, last = max(steps.items(), key=lambda x: x[1])
        raise ValueError(
            f"Parameter {a!r} has made {first} steps and {b!r} {last}; a state here has one count "
            'for all. Divide them with `optax.partition`, or set every "step" in the state dict.'
        )
    return next(iter(steps.values()), 0)


def _stored(moment, path, adapt, form, target):
    """A moment in the form that a state here is made from."""
    if adapt is not None and adapts(adapt, path, moment.x):
        return Stored(np.asarray(adapt(path, moment.values())))
    if form.dtype == np.uint8 and moment.layout is not None and moment.layout == target:
        return Stored(our_codes(moment.x, moment.signed), our_absmax(moment), moment.layout)
    return Stored(moment.values())


def _of_others(state):
    return [x for x in jax.tree.leaves(state, is_leaf=is_ours) if not is_ours(x)]
