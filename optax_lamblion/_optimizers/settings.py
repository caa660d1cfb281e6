"""What an optimizer is built with; and what is wrong with it, said as early as it can be known."""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_lamblion._implementation import check_kernels_exist
from optax_lamblion._optimizers import clipping
from optax_lamblion._state.layout import Layout
from optax_lamblion._state.options import DEFAULT_OPTIONS, StateOptions, check_min_8bit_size
from pallas_kernels.arithmetic.codecs import Codec, get_codec
from pallas_kernels.arithmetic.params import is_16bit
from pallas_kernels.arithmetic.rules import Rule


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """What the public factories pass on; numbers may be schedules or traced values.

    What follows from it is worked out once. Raises `TypeError` and `ValueError` as the factories
    say.
    """

    family: str
    """What the optimizer is called, without its bits."""
    rule: Rule
    state_type: Any
    numbers: Mapping[str, Any]
    """Those of the rule itself, by the names of the factory's arguments."""
    learning_rate: Any = None
    """None for a building block, which returns the direction itself."""
    weight_decay: Any = 0.0
    mask: Any = None
    adam_w_mode: bool = True
    max_unorm: Any = None
    trust_clip: tuple[Any, Any] | None = None
    bits: int | None = None
    min_8bit_size: int | None = None
    block_wise: bool = True
    percentile_clipping: Any = None
    paged: bool = False
    options: StateOptions | None = None

    def __post_init__(self):
        """Raises what can be known to be wrong before `init`."""
        for name, value in self.numbers.items():
            _NUMBERS[name](name, value)
        if self.learning_rate is not None:
            _check_value("learning_rate", self.learning_rate)
        _check_not_negative("weight_decay", self.weight_decay)
        if self.max_unorm is not None:
            _check_not_negative("max_unorm", self.max_unorm)
        _check_trust_clip(self.trust_clip, self.max_unorm)
        _check_mask(self.mask)
        _check_bits(self.bits)
        if self.min_8bit_size is not None:
            check_min_8bit_size(self.min_8bit_size)
        for name in ("block_wise", "adam_w_mode", "paged"):
            check_bool(name, getattr(self, name))
        clipping.check_percentile(self.percentile_clipping)
        _check_options(self)

    @cached_property
    def chosen(self) -> StateOptions:
        """The options, or the default ones."""
        return DEFAULT_OPTIONS if self.options is None else self.options

    @cached_property
    def block_size(self) -> int | None:
        """Elements that share a scale; None for all of a leaf."""
        return self.chosen.block_size if self.block_wise else None

    @cached_property
    def layout(self) -> Layout | None:
        """How leaves in 8 bits are stored; None if there are none."""
        return Layout(self.chosen.codec, self.block_size) if self.bits == 8 else None

    @cached_property
    def least_8bit_size(self) -> int:
        """Leaves with fewer elements are stored in 32 bits."""
        given = self.min_8bit_size
        return max(self.chosen.min_8bit_size if given is None else given, 1)

    @cached_property
    def resident_name(self) -> str:
        """What the optimizer is called whose state is the same, and stays on the device."""
        return f"{self.family}8bit" if self.bits == 8 else self.family

    @cached_property
    def clips(self) -> bool:
        """Whether gradient norms are remembered."""
        percentile = self.percentile_clipping
        return not (percentile is None or (_is_number(percentile) and percentile == 100))

    @cached_property
    def decays(self) -> bool:
        """Whether there may be weight decay."""
        return not (_is_number(self.weight_decay) and self.weight_decay == 0)

    @cached_property
    def codecs(self) -> tuple[Codec, ...]:
        """The codec of every slot."""
        return tuple(get_codec(self.chosen.codec, slot.signed) for slot in self.rule.slots)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Those of a state that have a leaf for every parameter."""
        slots = [f"{slot.name}{suffix}" for slot in self.rule.slots for suffix in ("", "_absmax")]
        return (*slots, "gnorm_history", "residual")

    @property
    def keeps_residuals(self) -> bool:
        """Whether state holds what parameters of 16 bits lack."""
        return self.chosen.param_rounding == "compensated"

    def has_residual(self, dtype) -> bool:
        """Whether parameters of this dtype have a residual."""
        return self.keeps_residuals and is_16bit(dtype)

    def codes(self, shape, keeps_32bit) -> bool:
        """Whether a leaf of this shape is stored in 8 bits."""
        in_32bit = self.layout is None or keeps_32bit
        return not in_32bit and math.prod(shape) >= self.least_8bit_size


# -------------------------------------------------------------------------------------- numbers


def _is_number(x):
    """Whether `x` is a Python number, whose value is known while tracing."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def _check_value(name, value):
    # A dtype in the wrong place is a class, which looks like a schedule and can be called like one.
    if isinstance(value, bool | type | np.dtype) or not (
        _is_number(value) or callable(value) or hasattr(value, "dtype")
    ):
        raise TypeError(f"`{name}` must be a number or a schedule, got {value!r}.")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value}.")
    if hasattr(value, "dtype"):
        check_scalar(name, value)


def check_scalar(name, value):
    """Raises `TypeError` unless it is one real number: a Python one, or an array of no axes."""
    if _is_number(value):
        return
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    is_real = dtype is not None and (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    )
    if not is_real or shape != ():
        what = type(value).__name__ if dtype is None else f"an array of shape {shape} and {dtype}"
        raise TypeError(
            f"`{name}` must be one real number, or a schedule that returns one, and is {what}. "
            "Index it, or take its real part, to pass a scalar."
        )


def _check_not_negative(name, value):
    _check_value(name, value)
    if _is_number(value) and value < 0:
        raise ValueError(f"`{name}` must not be negative, got {value}.")


def check_positive(name, value):
    """Raises unless it is a schedule or a number that is positive; infinity is one as well."""
    if not (_is_number(value) and value == math.inf):
        _check_value(name, value)
    if (_is_number(value) or isinstance(value, np.number)) and not float(value) > 0:
        raise ValueError(f"`{name}` must be positive, got {value}.")


def _check_beta(name, value):
    _check_value(name, value)
    if _is_number(value) and not 0 <= value < 1:
        raise ValueError(f"`{name}` must be at least 0 and below 1, got {value}.")


def check_bool(name, value):
    """Raises `TypeError` unless it is a Python bool."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")


_NUMBERS = {
    "b1": _check_beta,
    "b2": _check_beta,
    "eps": _check_not_negative,
    "bias_correction": check_bool,
}
"""How the numbers of rules are checked."""


def _check_trust_clip(trust_clip, max_unorm):
    if trust_clip is None:
        return
    if max_unorm is not None:
        raise ValueError(
            "`max_unorm` replaces the trust ratio that `trust_clip` clips. Pass one of them."
        )
    if (
        not isinstance(trust_clip, tuple | list)
        or len(trust_clip) != 2
        or not all(_is_number(x) or hasattr(x, "dtype") for x in trust_clip)
    ):
        raise TypeError(f"`trust_clip` must be a pair such as `(0.1, 10.0)`, got {trust_clip!r}.")
    low, high = trust_clip
    if _is_number(low) and _is_number(high) and not 0 <= low <= high:
        raise ValueError(f"`trust_clip` needs 0 <= low <= high, got {tuple(trust_clip)}.")


def check_learning_rate(name, learning_rate):
    """Raises `TypeError` for None, which only a building block may have."""
    if learning_rate is None:
        raise TypeError(
            "`learning_rate` must be a number or a schedule, got None. For the direction alone use "
            f"`scale_by_{name}`."
        )


# -------------------------------------------------------------------------------- other arguments


def _check_mask(mask):
    if isinstance(mask, bool | np.bool_ | jax.Array | np.ndarray):
        raise TypeError(
            f"`mask` must be a tree of bools like the parameters or a function that makes one, got "
            f"{mask!r}. For all or nothing leave it out, or `weight_decay`. If it was a function: "
            "`optax.inject_hyperparams` calls it like a schedule, unless it is told not to by "
            '`static_args=("mask",)`.'
        )


def _check_bits(bits):
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int)):
        raise TypeError(
            f"`bits` must be 8 or 32 as a Python int, got {type(bits).__name__}. Under "
            "`optax.inject_hyperparams`, which makes arrays of numbers, use the variants with the "
            'bits in their name, such as `lion8bit`, or pass `static_args=("bits",)`.'
        )
    if bits not in (None, 8, 32):
        raise ValueError(f"`bits` must be 8 or 32, got {bits}.")


def _check_options(c):
    if c.options is not None and not isinstance(c.options, StateOptions):
        raise TypeError(
            f"`options` must be a `StateOptions`, got {type(c.options).__name__}. "
            "For example `options=StateOptions(block_size=128)`."
        )
    check_kernels_exist(c.chosen.implementation, c.bits, c.block_size)
    if c.learning_rate is None and c.chosen.param_rounding != "nearest":
        raise ValueError(
            f'`param_rounding="{c.chosen.param_rounding}"` is for an optimizer that writes '
            f"parameters, and `scale_by_{c.family}` returns a direction. Use `{c.resident_name}` "
            "with a learning rate, and `apply_fused`."
        )
    if not c.block_wise and c.options is not None and c.options.block_size != 256:
        raise ValueError(
            "`block_wise=False` means one block per tensor, but `options` has "
            f"`block_size={c.options.block_size}`. Pass one of them."
        )


# ---------------------------------------------------------------------------- names of arguments

_ELSEWHERE = {
    "beta1": "b1",
    "beta2": "b2",
    "betas": "b1` and `b2",
    "decay": "weight_decay",
    "epsilon": "eps",
    "eta": "learning_rate",
    "is_paged": "paged",
    "lr": "learning_rate",
    "optim_bits": "bits",
    "wd": "weight_decay",
    "weight_decay_mask": "mask",
}
"""What arguments are called elsewhere, and what here."""


def factory[**P, R](make: Callable[P, R]) -> Callable[P, R]:
    """A factory that, called with an argument that it does not have, says what that is called."""
    known = inspect.signature(make).parameters

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(_unknown_argument(make.__name__, name, list(known)))
        return make(*args, **kwargs)

    return checked


def _unknown_argument(function, name, known):
    message = f"`{function}` has no argument `{name}`."
    if name in StateOptions.__dataclass_fields__ and "options" in known:
        return f"{message} It is one of the rarer choices: `options=StateOptions({name}=...)`."
    here = _ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, known, 1)), None)
    if here is not None and set(here.split("` and `")) <= set(known):
        return f"{message} Here it is `{here}`."
    return f"{message} It has {', '.join(f'`{x}`' for x in known)}."
