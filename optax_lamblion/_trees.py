"""Trees: what a leaf is called, and which leaves a tree of bools names."""

import jax
import numpy as np


def path_string(path):
    """A tree path as `"encoder/embed/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def bools_like(argument, tree, params):
    """A tree of bools (Python's where they are) like `params`."""
    try:
        tree = jax.tree.broadcast(tree, params)
    except ValueError as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"`{argument}` must be a tree of bools with the structure of the parameters or a "
            f"prefix of it, or a function that gives them: {why}."
        ) from None

    def check(path, m):
        if isinstance(m, bool | np.bool_):
            return bool(m)
        if isinstance(m, jax.Array | np.ndarray) and m.dtype == np.bool_ and m.shape == ():
            return m
        raise TypeError(
            f"`{argument}` must be a tree of bools, got {m!r} for {path_string(path)!r}."
        )

    return jax.tree_util.tree_map_with_path(check, tree)
