"""The programs that are compiled, by name.

To add one, write a function that returns a `Case` and put `@case(name)` before it. It is compiled
for tests that are marked as long, see `tests.slow`, unless `daily.py` has its name.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused
from tests.deviceless.daily import is_daily
from tests.deviceless.targets import TARGETS

SHAPE = (4096, 4096)
DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32}
OURS = ("lion8bit", "lamb8bit", "adamw8bit", "lion32bit", "lamb32bit", "adamw32bit")
OPTAX = ("lion", "lamb", "adamw")
# How a step is asked for: (name, fused, implementation).
MODES = (
    ("apply_fused", True, None),
    ("update", False, None),
    ("apply_fused, XLA", True, "xla"),
    ("update, XLA", False, "xla"),
)
_BUILDERS: dict[str, tuple[Callable[[], "Case"], tuple[str, ...]]] = {}


@dataclasses.dataclass(frozen=True)
class Case:
    """A function and what to compile it for.

    Attributes:
      fn: The function.
      args: Its arguments: trees of `jax.ShapeDtypeStruct`.
      donate: Positions of arguments that may be overwritten.
      mesh: A function from the target to the mesh of its devices; None for one device.
      out_shardings: As of `jax.jit`.
    """

    fn: Callable
    args: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    mesh: Callable | None = None
    out_shardings: Any = None


def case(name, targets=tuple(TARGETS)):
    """Registers the function below as the case `name`, for some of the targets."""

    def register(build):
        if name in _BUILDERS:
            raise ValueError(f"There are two cases `{name}`.")
        _BUILDERS[name] = build, targets
        return build

    return register


def names(target, long=False):
    """Names of the cases that are compiled for a target, every day or for long tests."""
    return [
        name
        for name, (_, targets) in _BUILDERS.items()
        if target in targets and is_daily(target, name) != long
    ]


def build(name):
    """The `Case` of that name."""
    return _BUILDERS[name][0]()


def ours(name, params, fused, implementation=None):
    """A `Case`: one step of the optimizer of that name."""
    options = StateOptions(implementation=implementation)
    tx = getattr(optax_lamblion, name)(1e-3, weight_decay=0.1, options=options)
    return step(tx, params, fused)


def step(tx, params, fused=False):
    """A `Case`: one step of an Optax transformation that returns parameters and state.

    Everything is donated, the gradient too: in a training step it is a value on the way.
    """
    state = jax.eval_shape(tx.init, params)

    def update(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def fused_update(params, grads, state):
        return apply_fused(tx, params, grads, state)

    return Case(fused_update if fused else update, (params, params, state), donate=(0, 1, 2))


# One large leaf, on one GPU: what XLA makes of a step is much the same for the others.
for _dtype_name, _dtype in DTYPES.items():
    _params = {"w": jax.ShapeDtypeStruct(SHAPE, _dtype)}
    for _name, (_mode, _fused, _implementation) in itertools.product(OURS, MODES):
        case(f"{_name}/{_dtype_name}/{_mode}", targets=("h200",))(
            functools.partial(ours, _name, _params, _fused, _implementation)
        )
    for _name in OPTAX:
        case(f"optax.{_name}/{_dtype_name}/update", targets=("h200",))(
            lambda name=_name, params=_params: step(
                getattr(optax, name)(1e-3, weight_decay=0.1), params
            )
        )
