"""Lion, LAMB and AdamW for JAX with 8-bit state, as Optax gradient transformations.

The public names are those of `_public`. It is imported when the first of them is used, because it
imports JAX, which takes seconds, and `optax-lamblion --help` does without.
"""

import typing

if typing.TYPE_CHECKING:
    from optax_lamblion._public import *  # noqa: F403
    from optax_lamblion._public import __all__ as __all__

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> typing.Any:
    # Submodules are found by the import system, after an error from here.
    if name != "__all__" and name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optax_lamblion import _public

    globals().update({x: getattr(_public, x) for x in ("__all__", *_public.__all__)})
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
