"""A saved state, by the names of its arrays.

Checkpoint libraries give trees back in other types: a NamedTuple as a dict, a tuple as a list, what
is empty not at all. Names survive all of them.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from optax_lamblion._layout import Layout, layout_of
from optax_lamblion._recode import SLOTS, Source, Stored
from optax_lamblion._trees import path_string


class Saved:
    """The arrays of a state by their path, of which each is taken once.

    Args:
      state: Arrays or what describes them (`shape`, `dtype`), in a tree.
    """

    def __init__(self, state):
        rows = jax.tree_util.tree_leaves_with_path(state)
        self._left = {path_string(path): x for path, x in rows}
        self._counts_are_optax = False

    def take(self, name, shape, dtype=None) -> Any:
        """The array of that name.

        Raises:
          ValueError: There is none, or it has another shape or dtype.
        """
        x = self._pop(name)
        if tuple(x.shape) != tuple(shape) or (dtype is not None and x.dtype != dtype):
            raise ValueError(
                f"State leaf {name!r} has shape {tuple(x.shape)} and dtype {x.dtype}; this "
                f"optimizer needs {tuple(shape)} and {jnp.dtype(dtype or x.dtype)}."
            )
        return x

    def source(self, prefix, like) -> tuple[Source, Layout | None]:
        """What there is for one of our states, and in which layout.

        A state of Optax's `scale_by_lion` or `scale_by_adam` will do if it is the only one there.

        Args:
          prefix: The path of our state.
          like: A state in the form that is needed; its slots and leaves count.
        """
        if _join(prefix, "count") not in self._left:
            prefix = self._only_state(prefix)
        count = self.take(_join(prefix, "count"), (), jnp.int32)
        layout = self._layout(prefix)
        slots: dict[str, dict[str, Stored]] = {}
        for name in [name for name in SLOTS if getattr(like, name, None) is not None]:
            rows = jax.tree_util.tree_leaves_with_path(getattr(like, name))
            slots[name] = {
                leaf: self._stored(prefix, name, leaf, layout)
                for leaf in [path_string(path) for path, _ in rows]
            }
        history = None
        if like.gnorm_history is not None and self._has(_join(prefix, "gnorm_history")):
            rows = jax.tree_util.tree_leaves_with_path(like.gnorm_history)
            leaves = [path_string(path) for path, _ in rows]
            history = {x: self._pop(_join(prefix, "gnorm_history", x)) for x in leaves}
        return Source(count, slots, history), layout

    def refuse_the_rest(self):
        """Raises `ValueError` if an array was not taken."""
        left = [
            name
            for name in self._left
            if not (self._counts_are_optax and name.rpartition("/")[2] == "count")
        ]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise ValueError(
                f"State leaf {left[0]!r}{more} has no place in the state of this optimizer. Build "
                "the optimizer with the arguments and for the parameters that the state was saved "
                "with, or leave the leaf out of the state to go on without it."
            )

    def _layout(self, prefix):
        start = _join(prefix, "layout") + "/"
        names = [name for name in self._left if name.startswith(start)]
        for name in names:
            self._pop(name)
        return layout_of({name.removeprefix(start): 0 for name in names}) if names else None

    def _stored(self, prefix, name, leaf, layout):
        x = self._pop(_join(prefix, name, leaf))
        absmax = self._left.pop(_join(prefix, f"{name}_absmax", leaf), None)
        if x.dtype == jnp.uint8:
            if layout is None:
                layout_of(None)  # raises
            return Stored(x, absmax, layout)
        return Stored(x)

    def _only_state(self, prefix):
        """The path of the only state with momentum that there is."""
        found = {
            path.rpartition("mu")[0].rstrip("/")
            for path in [name[: at.end()] for name in self._left for at in _MOMENTUM.finditer(name)]
        }
        found = {x for x in found if _join(x, "count") in self._left}
        if len(found) != 1:
            where = f"at {prefix!r}" if prefix else "at the top"
            raise ValueError(
                f"There is no state of Lion or LAMB {where} of what was saved, which has "
                f"{self._names()}. Pass the state of the optimizer, with the transformations "
                "around it that `tx` has."
            )
        self._counts_are_optax = True
        return found.pop()

    def _has(self, prefix):
        return any(name == prefix or name.startswith(prefix + "/") for name in self._left)

    def _pop(self, name):
        if name not in self._left:
            raise ValueError(
                f"State leaf {name!r} is missing from what was saved, which has {self._names()}. "
                "It was saved by another optimizer, for other parameters, or not whole."
            )
        return self._left.pop(name)

    def _names(self):
        names = list(self._left)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return (", ".join(map(repr, names[:4])) or "no arrays") + more


_MOMENTUM = re.compile(r"(?:^|/)mu(?=/|$)")


def _join(*names):
    return "/".join(name for name in names if name)
