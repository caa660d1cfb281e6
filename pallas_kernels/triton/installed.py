"""Whether Triton and jax-triton are here, and the one place that imports them.

jax-triton belongs to an extra, and nothing imports it before a kernel is to be compiled.
"""

import functools
import importlib.util
import inspect
import os

COMMAND = "pip install 'optax-lamblion[triton]'"


@functools.cache
def why_not() -> str | None:
    """Why kernels cannot be compiled here, whatever the GPU; None if they can."""
    missing = [name for name in ("triton", "jax_triton") if not _is_installed(name)]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        verb = "is" if len(missing) == 1 else "are"
        return f"{names} {verb} not installed; {COMMAND} installs what it takes"
    return None


def _is_installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@functools.cache
def jax_triton():
    """The module `jax_triton`, able to run with the JAX that is here."""
    # It removes a variable that users may have set for themselves.
    before = os.environ.get(_CACHE)
    import jax_triton  # pyright: ignore[reportMissingImports]

    if before is not None:
        os.environ[_CACHE] = before
    _mend_elimination()
    return jax_triton


_CACHE = "TRITON_CACHE_DIR"


def _mend_elimination():
    """Lets jax-triton 0.4.1, which was made for JAX 0.11, lower with JAX 0.12.

    Rules that say what of an equation is dead code have three arguments since JAX 0.12, and the one
    of jax-triton has two. It keeps everything, and so does what replaces it.
    """
    from jax._src.interpreters import partial_eval
    from jax_triton import triton_lib  # pyright: ignore[reportMissingImports]

    primitive = triton_lib.triton_kernel_call_p
    rules = partial_eval.dce_rules
    if _arguments(rules[primitive]) < _arguments(partial_eval._default_dce_rule):
        rules[primitive] = lambda used, live, equation: ([True] * len(equation.invars), equation)


def _arguments(function):
    return len(inspect.signature(function).parameters)
