"""Any tree as nested dicts of arrays, and filled again by the names of its leaves.

Checkpoint libraries differ in the containers and keys that they keep: NamedTuples, lists, integer
keys and typed random keys do not survive all of them. Dicts with string keys do.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from optax_lamblion._checkpoints.places import put, struct
from optax_lamblion._state.names import first_names


def as_dicts(tree):
    """A tree as nested dicts with string keys. Random keys become their data, numbers arrays.

    A single array stays one.

    Raises:
      TypeError: A leaf is no array and no number. The message names it.
      ValueError: Two leaves have the same name.
    """
    out = {}
    for path, x in tree_leaves_with_path(tree):
        if not path:
            return _as_array(path, x)
        *parents, last = _parts(path)
        node = out
        for part in parents:
            node = node.setdefault(part, {})
        if last in node:
            raise ValueError(f"Two leaves are called {'/'.join(_parts(path))!r}. Rename one.")
        node[last] = _as_array(path, x)
    return out


def filled(tree, saved, *, missing="refuse"):
    """A tree whose leaves are those that were saved under their names, where the old ones are.

    Args:
      tree: Arrays, their shapes, or numbers.
      saved: What `as_dicts` returned, as a checkpoint library gives it back.
      missing: `"fresh"` keeps a leaf that was not saved, or in another shape, as it is.

    Raises:
      ValueError: A leaf is missing, has another shape or dtype, or has no place in `tree`.

    Warns:
      UserWarning: With `missing="fresh"`, which leaves were kept or left behind.
    """
    left = {_parts(path): x for path, x in tree_leaves_with_path(saved)}
    on_mesh = any(len(x.sharding.device_set) > 1 for x in _placed(tree))
    kept, wrong = [], []

    def fill(path, old):
        name, like = "/".join(_parts(path)), _as_array(path, old)
        x = left.pop(_parts(path), None)
        if x is None:
            kept.append(name)
            return old
        x = x if hasattr(x, "dtype") else np.asarray(x)
        if tuple(x.shape) != tuple(like.shape):
            kept.append(name)
            wrong.append(f"{name!r} has shape {tuple(x.shape)} where {tuple(like.shape)} is needed")
            return old
        if x.dtype != like.dtype and not isinstance(old, _NUMBERS):
            raise ValueError(
                f"{name!r} was saved as {x.dtype}, and is {like.dtype} here. Build the model with "
                "the dtype that was saved, or cast what was saved before you restore it."
            )
        return _as_was(x, old, on_mesh)

    new = tree_map_with_path(fill, tree)
    behind = ["/".join(parts) for parts in left]
    if missing != "fresh" and (kept or behind):
        reasons = [*wrong[:1]] or [
            *([f"it has no {first_names(kept)}"] if kept else []),
            *([f"it has {first_names(behind)}, for which there is no place"] if behind else []),
        ]
        raise ValueError(
            f"This is a checkpoint of another model: {' and '.join(reasons)}. Build the model as "
            'it was, or pass `missing="fresh"` to restore what fits and to keep the rest as it is.'
        )
    if kept or behind:
        words = [f"not restored: {first_names(kept)}"] if kept else []
        words += [f"dropped from the checkpoint: {first_names(behind)}"] if behind else []
        warnings.warn(f"In `restore`, {'; '.join(words)}.", stacklevel=3)
    return new


_NUMBERS = (bool, int, float)


def _parts(path):
    return tuple(keystr((key,), simple=True) for key in path)


def _placed(tree):
    return [x for x in jax.tree.leaves(tree) if getattr(x, "sharding", None) is not None]


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _implementation(key):
    """The generator of a random key, of which only the shape may be known."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]


def _as_array(path, x):
    """A leaf as every library can save it: an array of numbers, or the shape of one."""
    if isinstance(x, _NUMBERS):
        return jnp.asarray(x)
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise TypeError(
            f"{'/'.join(_parts(path))!r} is {x!r}, which is no array and cannot be saved. Keep it "
            "in an attribute that is no variable, or leave it out by a filter."
        )
    if not _is_key(x):
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, x)
    return jax.random.key_data(x)


def _as_was(x, old, on_mesh):
    """A saved array in the type and in the place of the one that it replaces."""
    if isinstance(old, _NUMBERS):
        return type(old)(np.asarray(x).item())
    if _is_key(old):
        x = jax.random.wrap_key_data(jnp.asarray(np.asarray(x)), impl=_implementation(old))
    is_tied = isinstance(old, jax.ShapeDtypeStruct) or getattr(old, "committed", False)
    sharding = getattr(old, "sharding", None) if is_tied else None
    if sharding is None and on_mesh:
        # A library may have tied it to a device; beside a mesh it has to go where the mesh is.
        return x if _is_key(old) else jnp.asarray(np.asarray(x))
    return put(x, struct(x, sharding))
