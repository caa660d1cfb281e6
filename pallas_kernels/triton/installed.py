"""Whether Triton and jax-triton are here, and the one place that imports them.

jax-triton belongs to an extra, and nothing imports it before a kernel is to be compiled.
"""

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import re

OLDEST = {"jax-triton": "0.4.1", "triton": "3.7"}
"""The oldest versions that work together, by distribution, as in the extra."""

COMMAND = "pip install 'jax-triton>=0.4.1'"
"""What installs all of it: jax-triton asks for the Triton that it needs."""


@functools.cache
def why_not() -> str | None:
    """Why kernels cannot be compiled here, whatever the GPU; None if they can."""
    missing = [name for name in OLDEST if not _is_there(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return f"{' and '.join(missing)} {verb} not installed ({COMMAND})"
    old = [
        f"{name} {here} is older than {oldest}"
        for name, oldest in OLDEST.items()
        if (here := _version(name)) and _numbers(here) < _numbers(oldest)
    ]
    return f"{' and '.join(old)} ({COMMAND})" if old else None


def _is_there(name):
    try:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    except (ImportError, ValueError):
        return False


def _version(name):
    """None if it is here under another name, as builds for AMD may be."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version):
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


@functools.cache
def jax_triton():
    """The module `jax_triton`, able to run with the JAX that is here."""
    # It removes a variable that users may have set for themselves.
    before = os.environ.get(_CACHE)
    try:
        import jax_triton  # pyright: ignore[reportMissingImports]
    except Exception as error:
        raise ImportError(
            f"jax-triton {_version('jax-triton')} with Triton {_version('triton')} cannot be "
            f"imported ({type(error).__name__}: {error}). `{COMMAND}` brings versions that go "
            'together, and `implementation="xla"` takes no kernels.'
        ) from error
    finally:
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
