"""What the codes of a state mean, said by the state itself.

Shapes and dtypes do not tell a codec, nor always a block size. A state in 8 bits therefore carries
its layout as the name of an entry: the structure of a tree is known while a step is traced, and
stays with a state through most libraries that save one. Some keep arrays by their place alone; so
the entry's value says the same once more, as a number.
"""

import dataclasses
import itertools
import re
import zlib
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_lamblion._state.names import path_string
from optax_lamblion._state.options import StateOptions
from pallas_kernels.arithmetic.blocks import BLOCK_SIZES
from pallas_kernels.arithmetic.codecs import CODEC_NAMES

FORMAT = 2
"""Counts up when codes or scales of the same codec and block size come to mean something else."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How 8-bit leaves are stored."""

    codec: str
    """The name of the codec."""
    block_size: int | None
    """Elements that share a scale; None for all of a leaf."""

    @cached_property
    def entry(self) -> str:
        """The name that stands for it in a state: `"power_256_v2"`."""
        block = "tensor" if self.block_size is None else self.block_size
        return f"{self.codec}_{block}_v{FORMAT}"

    @cached_property
    def number(self) -> int:
        """The value of that entry, an int32 that float32 can hold."""
        return zlib.crc32(self.entry.encode()) >> 8

    @property
    def block_words(self) -> str:
        """The block size in words."""
        if self.block_size is None:
            return "one block per tensor"
        return f"block size {self.block_size}"

    @property
    def arguments(self) -> str:
        """What to pass to a factory to get it."""
        options = {}
        if self.block_size is not None:
            options["block_size"] = self.block_size
        if self.codec != StateOptions().codec or not options:
            options["codec"] = self.codec
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        whole = "block_wise=False, " if self.block_size is None else ""
        return f"`{whole}options=StateOptions({given})`".replace("'", '"')


def layout_of(field: Any) -> Layout:
    """The layout that the `layout` of an 8-bit state names.

    Raises:
      ValueError: It names none, or one of another version of this package; or its value is known,
        and names another one.
    """
    names = list(field) if isinstance(field, dict) else []
    match = re.fullmatch(r"(\w+)_(\d+|tensor)_v(\d+)", names[0]) if len(names) == 1 else None
    if match is None:
        raise ValueError(
            f"The state's `layout` must have one entry like {Layout('power', 256).entry!r}, which "
            f"says what its codes mean, and has {names}. It was not made by `init`, or not whole "
            "when it was saved; make a new one with `tx.init(params)`."
        )
    codec, block, version = match.groups()
    if int(version) != FORMAT:
        remedy = "Load it with the version that wrote it, or a newer one."
        if int(version) < FORMAT:
            remedy = (
                "Its codes mean something else. With the version that wrote it make it one in 32 "
                "bits (`convert_state` with `lion32bit()` or `lamb32bit()`), and convert that; or "
                "make a new one with `tx.init(params)`."
            )
        raise ValueError(
            f"The state has format {version}, and this version of optax_lamblion reads format "
            f"{FORMAT}. {remedy}"
        )
    if codec not in CODEC_NAMES:
        raise ValueError(
            f'The state has codec "{codec}", which this version of optax_lamblion does not know. '
            "Load it with the version that wrote it, or a newer one."
        )
    layout = Layout(codec, None if block == "tensor" else int(block))
    value = field[names[0]]
    if tuple(getattr(value, "shape", ())) != ():
        raise ValueError(
            f"State leaf 'layout/{names[0]}' has shape {tuple(value.shape)}; it should be an int32 "
            "scalar. Take the state as it was saved, or make a new one with `tx.init(params)`."
        )
    _check_number(layout, known(value))
    return layout


def _check_number(layout, number):
    if number in (None, 0, layout.number):  # 0 says nothing: zeros are a fresh state
        return
    every = itertools.starmap(Layout, itertools.product(CODEC_NAMES, (None, *BLOCK_SIZES)))
    saved = next((x for x in every if x.number == number), None)
    was = "is none of this version's" if saved is None else f"stands for {saved.entry!r}"
    remedy = (
        "Read them into the state of an optimizer with the arguments of the one that wrote them."
    )
    if saved is not None:
        remedy = f"Read them into the state of an optimizer with {saved.arguments}."
    raise ValueError(
        f"The state's `layout` is called {layout.entry!r}, but its value {number} {was}: its "
        "arrays were saved without their names, and read into the state of an optimizer that "
        f"stores codes in another way. {remedy}"
    )


def known(x) -> Any:
    """The value of a scalar, where it takes no waiting for a device to know it; or None."""
    if isinstance(x, jax.Array) and not isinstance(x, Tracer):
        ready: Any = x
        return x.item() if x.is_fully_replicated and ready.is_ready() else None
    return np.asarray(x).item() if isinstance(x, np.ndarray | np.generic | int | float) else None


def check_layout(layout: Layout, state) -> None:
    """Raises `ValueError`, which names a leaf, if a state's codes mean something else."""
    if (has := layout_of(state.layout)) != layout:
        refuse_layout(layout, has, state.mu)


def refuse_layout(
    layout: Layout | None,
    has: Layout | None,
    mu,
    remedy: str = "convert the state with `convert_state(state, params, tx)`",
) -> None:
    """Raises `ValueError` if a state has another layout than its optimizer.

    Args:
      layout: The optimizer's; None in 32 bits.
      has: The state's.
      mu: The momentum in one of the two layouts, for the name of a leaf.
      remedy: What to do to go on with this state.
    """
    if has == layout:
        return
    leaves = jax.tree_util.tree_leaves_with_path(mu)
    named = [path_string(path) for path, x in leaves if x.dtype == jnp.uint8]
    named = named or [path_string(path) for path, _ in leaves]
    leaf = f"State leaf mu[{named[0]!r}]" if named else "The state"
    if has is None or layout is None:
        is_in, keeps = (8, 32) if layout is None else (32, 8)
        differs = f"is in {is_in} bits, but this optimizer keeps {keeps}"
        arguments = f"`bits={is_in}`"
    elif has.codec != layout.codec:
        differs = f'has codec "{has.codec}", but this optimizer uses "{layout.codec}"'
        arguments = has.arguments
    else:
        uses = str(layout.block_size or layout.block_words)
        differs, arguments = f"has {has.block_words}, but this optimizer uses {uses}", has.arguments
    raise ValueError(f"{leaf} {differs}. Build it with {arguments}, or {remedy}.")
