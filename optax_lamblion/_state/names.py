"""Trees: what a leaf is called, and which leaves a choice names."""

import jax
import numpy as np
from jax.tree_util import DictKey, GetAttrKey


def path_string(path):
    """A tree path as `"encoder/embed/kernel"`.

    Flax keeps parameters in boxes, in a field called `value`, and takes them out when it likes:
    `nnx.Optimizer` makes a state for boxes and steps without. The box is no part of the name.
    """
    if len(path) > 1 and isinstance(path[-2], DictKey) and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def first_names(names):
    """The first of many names, for a message."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(repr, names[:4])) + more


def chosen(argument, choice, params, ask):
    """The leaves that a choice names: a tree of bools (Python's where they are) like `params`.

    Args:
      argument: What the choice is called.
      choice: A tree of bools, a prefix of one, or a function.
      params: Parameters, or what is shaped like them.
      ask: `ask(choice)` is the tree that a function names.
    """
    # A model can be both: a pytree of bools that can be called. It is one of bools.
    leaves = jax.tree.leaves(choice)
    is_tree = bool(leaves) and all(isinstance(x, bool | np.bool_) for x in leaves)
    tree = ask(choice) if callable(choice) and not is_tree else choice
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
