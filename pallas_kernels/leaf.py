"""A leaf: one parameter with all that its step needs, as one value; and what the step makes of it.

Made once, and passed whole to whatever steps it. What is static travels in `spec`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from pallas_kernels.arithmetic.dither import Dither
from pallas_kernels.arithmetic.dtypes import promote
from pallas_kernels.arithmetic.pieces import Piece
from pallas_kernels.arithmetic.rules import Scalars
from pallas_kernels.arithmetic.step import Spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredSlot:
    """A slot as it is stored."""

    values: Any
    """uint8 codes, or floating point, in the parameter's shape; of a piece, of that alone."""
    absmax: Any = None
    """The scales of codes, float32, one per block; None for floating point."""

    @property
    def coded(self) -> bool:
        """Whether it holds 8-bit codes."""
        return self.absmax is not None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter that is to make a step, or a piece of it.

    Of a piece, gradient and parameter are those of the whole leaf, and slots those of the piece.
    """

    g: Any
    """Gradient, any floating dtype."""
    p: Any
    """Parameter; None where neither weight decay nor a trust ratio nor `Spec.emit` needs it."""
    slots: tuple[StoredSlot, ...]
    scalars: Scalars
    dither: Dither
    spec: Spec = dataclasses.field(metadata=dict(static=True))
    target: Any = None
    """What of a leaf in pieces has made its step so far: parameters, or updates."""
    start: Any = None
    """The grain at which a piece begins, an int32 scalar; None of a whole leaf."""
    residual: Any = None
    """What the parameter lacks, int8 (see `arithmetic.params`), of a piece that of the piece; None
    where there is none."""

    def replace(self, **changes) -> "Leaf":
        """It, with other values in some fields."""
        return dataclasses.replace(self, **changes)

    def respec(self, **changes) -> "Leaf":
        """It, with other static choices."""
        return dataclasses.replace(self, spec=self.spec._replace(**changes))

    @property
    def coded(self) -> bool:
        """Whether all its slots hold 8-bit codes."""
        return all(slot.coded for slot in self.slots)

    @property
    def size(self) -> int:
        """Elements that are stepped: of the leaf, or of the piece."""
        return self.slots[0].values.size

    @property
    def piece(self) -> Piece | None:
        """Which piece of the leaf this is; None if it is whole."""
        if self.start is None:
            return None
        return Piece(self.start, self.size, self.g.size, self.spec.block_size or 256)

    def here(self, x: Any) -> Any:
        """What of an array that is shaped like the leaf is stepped; None of None."""
        piece = self.piece
        return x if piece is None else piece.of(x)

    def whole(self, out: Any) -> Any:
        """What a step returns: what it made of the leaf, or the target with its piece replaced."""
        piece = self.piece
        return out if piece is None else piece.put(self.target, out)

    @property
    def param(self) -> Any:
        """The parameter, which in pieces may be what is being written; or None."""
        return self.target if self.start is not None and self.spec.emit == "params" else self.p

    @property
    def out_dtype(self) -> Any:
        """The dtype of what its step returns."""
        if self.start is not None:
            return self.target.dtype
        return self.p.dtype if self.spec.emit == "params" else self.update_dtype

    @property
    def update_dtype(self) -> Any:
        """The dtype of its updates."""
        others = None if self.p is None else self.p.dtype, self.spec.update_dtype
        return promote(self.g.dtype, *(x for x in others if x is not None))


class Stepped(NamedTuple):
    """What a step makes of a leaf."""

    out: Any
    """Updates, in the dtype that gradient and parameter promote to; or parameters in their own. Of
    a piece, the target of the whole leaf."""
    slots: tuple[StoredSlot, ...]
    skipped: Any = None
    """How many elements were left alone, a float32 scalar; None if that is not asked for."""
    residual: Any = None
    """What the parameters lack, where the leaf has such a residual."""


class Applied(NamedTuple):
    """What a leaf makes of its new state."""

    out: Any
    residual: Any = None
    """Both as of `Stepped`."""


class Halfway(NamedTuple):
    """A leaf between its new state and its step, which a norm scales that is not known here."""

    slots: tuple[StoredSlot, ...]
    sums: Any
    """The squares of parameters and direction, `(parts, 2)`, or `(parts, layers, 2)`: to be added
    up over parts and devices for `step.ratio`. Of a piece `(grains, 2)`, for
    `step.sum_of_grains`."""
    tiles: Any = None
    """What a kernel knows of its tiles, which spares `apply` a read."""
    skipped: Any = None
    """As of `Stepped`."""
