"""Types of arguments as they are written in the source.

JAX's and Optax's types are unions, some of ten types. Sphinx would write all of them out, where the
source has `optax.ScalarOrSchedule`.
"""

import ast
import inspect
import re
import textwrap

from sphinx.util.inspect import TypeAliasForwardRef

from _extensions.inventories import SHORT

# By the module that documents them, the types that the source imports by name.
_PUBLIC = {
    "collections.abc": ("Callable", "Mapping", "Sequence"),
    "jax.typing": ("ArrayLike", "DTypeLike"),
    "optax_lamblion": ("StateCheck", "StateOptions", "StateReport"),
    "pallas_kernels": ("Codec",),
    "typing": ("Any", "Literal"),
}
_IN_FULL = {
    "Mask": "typing.Any | collections.abc.Callable | None",
    **{name: f"{module}.{name}" for module, names in _PUBLIC.items() for name in names},
}


def _in_full(annotation):
    text = re.sub(r"\b(\w+)(?=\.)", lambda x: SHORT.get(x[0], x[0]), ast.unparse(annotation))
    return re.sub(r"(?<![\w.'])[A-Za-z]\w+(?![\w'])", lambda x: _IN_FULL.get(x[0], x[0]), text)


def as_written(app, obj, bound_method):
    """Gives a function its annotations as text, before Sphinx reads them."""
    function = inspect.unwrap(obj)
    if not inspect.isfunction(function) or not function.__annotations__:
        return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except OSError:  # the constructor of a dataclass or a NamedTuple
        return
    found = {x.arg: x.annotation for x in ast.walk(tree.args) if isinstance(x, ast.arg)}
    found["return"] = tree.returns
    annotations = {
        name: TypeAliasForwardRef(_in_full(annotation))
        for name, annotation in found.items()
        if annotation is not None
    }
    obj.__annotations__ = function.__annotations__ = annotations
