"""What a state costs: bytes by leaf, by dtype and by kind of memory."""

import collections
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_lamblion._placement import memory_kind
from optax_lamblion._trees import path_string


class StateLeaf(NamedTuple):
    """One array of a state."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    memory_kind: str
    nbytes: int


@dataclasses.dataclass(frozen=True)
class StateReport:
    """The bytes of an optimizer's state; prints as a table.

    Attributes:
      leaves: One `StateLeaf` per array, in tree order.
    """

    leaves: tuple[StateLeaf, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def by_dtype(self) -> dict[str, int]:
        """Bytes per dtype."""
        return self._sum("dtype")

    @property
    def by_memory_kind(self) -> dict[str, int]:
        """Bytes per kind of memory."""
        return self._sum("memory_kind")

    def _sum(self, field):
        totals = collections.Counter()
        for leaf in self.leaves:
            totals[getattr(leaf, field)] += leaf.nbytes
        return dict(totals)

    def __str__(self):
        """A table of all leaves and the totals."""
        rows = [("leaf", "shape", "dtype", "memory", "bytes")]
        rows += [
            (
                x.path,
                "x".join(map(str, x.shape)) or "scalar",
                x.dtype,
                x.memory_kind,
                f"{x.nbytes:,}",
            )
            for x in self.leaves
        ]
        rows += [("total", "", dtype, "", f"{n:,}") for dtype, n in sorted(self.by_dtype.items())]
        rows += [
            ("total", "", "", kind, f"{n:,}") for kind, n in sorted(self.by_memory_kind.items())
        ]
        rows.append(("total", "", "", "", f"{self.nbytes:,}"))
        *left, right = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = []
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row[:-1], left, strict=True)]
            lines.append("  ".join([*cells, row[-1].rjust(right)]))
        return "\n".join(lines)


def _shape(leaf):
    return "x".join(map(str, leaf.shape)) or "scalar"


def state_report(state) -> StateReport:
    """Counts the bytes of an optimizer's state.

    Args:
      state: The state of any Optax transformation: arrays, or the `ShapeDtypeStruct`s of
        `jax.eval_shape(tx.init, params)`, which costs no memory.

    Returns:
      A `StateReport`: `nbytes`, `by_dtype`, `by_memory_kind` and `leaves`. It prints as a table.
      Bytes are those of the whole (global) arrays.

    Examples:
      >>> params = {"w": jnp.zeros((64, 256)), "b": jnp.zeros(256)}
      >>> print(state_report(lion8bit().init(params)))
      leaf         shape   dtype    memory   bytes
      count        scalar  int32    device       4
      mu/b         256     float32  device   1,024
      mu/w         64x256  uint8    device  16,384
      mu_absmax/b  1       float32  device       4
      mu_absmax/w  64x1    float32  device     256
      total                float32           1,284
      total                int32                 4
      total                uint8            16,384
      total                         device  17,672
      total                                 17,672
    """
    leaves = []
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        dtype = jnp.dtype(x.dtype)
        size = math.prod(x.shape) * dtype.itemsize
        leaf = StateLeaf(path_string(path), tuple(x.shape), str(dtype), memory_kind(x), size)
        leaves.append(leaf)
    return StateReport(tuple(leaves))
