"""How Triton says what a primitive of JAX does: a statement for every one that bodies use.

`RULES` has a function for each, of `Equation`, that returns the text of an expression. A primitive
that is not here is refused by its name, while a kernel is traced.
"""

from typing import Any, NamedTuple

import numpy as np


class Value(NamedTuple):
    """The source of a value. Its shape may lack what Triton broadcasts by itself."""

    text: str
    shape: tuple[int, ...]
    literal: Any = None
    """The number that it is, of a literal."""


class Equation(NamedTuple):
    """An equation of a jaxpr, with the source of what it is given."""

    name: str
    params: dict[str, Any]
    args: tuple[Value, ...]
    types: tuple[Any, ...]
    """Of what it is given, with their full shapes."""
    out: Any
    """The type of its result."""

    @property
    def texts(self):
        """What it is given."""
        return [x.text for x in self.args]

    @property
    def shape(self):
        """To which Triton broadcasts what it is given."""
        return np.broadcast_shapes(*(x.shape for x in self.args))

    def full(self, i=0):
        """What it is given in its full shape."""
        return full(self.args[i], self.types[i])

    def refuse(self, why):
        """The error that says what its primitive cannot do."""
        return NotImplementedError(
            f"Triton kernels have no `{self.name}` {why}, and this one is of {self._given}. What "
            f"they can do is in {_PLACE}."
        )

    def unknown(self):
        """The error that says that there is no rule for its primitive."""
        known = ", ".join(sorted([*RULES, *POWERS]))
        return NotImplementedError(
            f"Triton kernels have no `{self.name}`, and this one is of {self._given}. Write it "
            f"with what they have, or add it to `RULES` in {_PLACE}: {known}."
        )

    @property
    def _given(self):
        return " and ".join(x.str_short() for x in self.types) or "nothing"


_PLACE = "pallas_kernels/triton/rules.py"


def full(value, of_type):
    """The text of a value in the shape of its type."""
    # In Triton, the elements of a tile have a shape of their own.
    shape = "shape" if len(of_type.shape) == 2 else of_type.shape
    if value.literal is not None:
        return f"tl.full({shape}, {value.text}, {dtype(of_type)})"
    if value.shape == of_type.shape:
        return value.text
    return f"tl.broadcast_to({value.text}, {shape})"


def dtype(of_type):
    """Triton's name of a dtype."""
    name = str(of_type.dtype)
    return "tl.int1" if name == "bool" else f"tl.{name}"


def literal(number, of_type):
    """A number of a type, exactly."""
    number = np.asarray(number).astype(of_type.dtype)[()]
    if of_type.dtype in (bool, np.int32):
        text = str(number)
    elif np.issubdtype(of_type.dtype, np.integer):
        text = f"tl.full((), {int(number)}, {dtype(of_type)})"
    else:  # the shortest decimal of the float64 that the number is
        text = str(float(number)) if np.isfinite(number) else f'float("{number}")'
    return Value(f"({text})" if text[0] == "-" else text, (), number)


def _is_integer(of_type):
    return np.issubdtype(of_type.dtype, np.integer)


def _is_signed(of_type):
    return np.issubdtype(of_type.dtype, np.signedinteger)


def _format(pattern):
    def rule(equation):
        return pattern.format(*equation.texts), equation.shape

    return rule


def _shift_right(equation):
    """`>>`, which follows the sign of the type."""
    if _is_signed(equation.types[0]) != (equation.name == "shift_right_arithmetic"):
        raise equation.refuse("of such numbers, as `>>` goes by their sign")
    return _format("{} >> {}")(equation)


def _divide(equation):
    # Those of bodies are made once for a block. `/` would be off by up to 2 ulp.
    pattern = "{} // {}" if _is_integer(equation.out) else "tl.div_rn({}, {})"
    return _format(pattern)(equation)


def _remainder(equation):
    if not _is_integer(equation.out):
        raise equation.refuse("but of integers")
    return _format("{} % {}")(equation)


def _select(equation):
    if len(equation.args) != 3:
        raise equation.refuse("but of two cases")
    return _format("tl.where({0}, {2}, {1})")(equation)


def _broadcast(equation):
    shape, at = equation.params["shape"], equation.params["broadcast_dimensions"]
    (x,) = equation.args
    if not x.shape:
        return x.text, ()
    if len(shape) != 2 or at != (0,):
        raise equation.refuse("but of numbers, and of rows to the elements of a tile")
    return f"{x.text}[None, :, None]", (shape[0], 1)


def _squeeze(equation):
    (x,) = equation.args
    if x.shape:
        raise equation.refuse("but of what is one number")
    return x.text, ()


def _convert(equation):
    (x,) = equation.args
    if equation.types[0].dtype == equation.out.dtype:
        return x.text, x.shape
    return f"{x.text}.to({dtype(equation.out)})", x.shape


def _bitcast(equation):
    (x,) = equation.args
    return f"{x.text}.to({dtype(equation.out)}, bitcast=True)", x.shape


def _iota(equation):
    axis, shape = equation.params["dimension"], equation.params["shape"]
    texts = {(1, 0): "row", (2, 0): "row[None, :, None]", (2, 1): "column"}
    if (len(shape), axis) not in texts:
        raise equation.refuse("but along rows or a row of a tile")
    seen = tuple(n if i == axis else 1 for i, n in enumerate(shape))
    return f"{texts[len(shape), axis]}.to({dtype(equation.out)})", seen


def _reduce(combine):
    def rule(equation):
        of_rows = len(equation.types[0].shape) == 1
        if equation.params["axes"] != (0 if of_rows else 1,):
            raise equation.refuse("but over a row, or over all rows of one value each")
        # The parts of a row are reduced in registers, and what is left between threads.
        text = combine.format(equation.full(), 0)
        return text if of_rows else combine.format(text, 1), equation.out.shape

    return rule


_EXTREME = "tl.{}imum({{}}, {{}}, propagate_nan=tl.PropagateNan.ALL)"

RULES = {
    "add": _format("{} + {}"),
    "sub": _format("{} - {}"),
    "mul": _format("{} * {}"),
    "neg": _format("-{}"),
    "abs": _format("tl.abs({})"),
    "max": _format(_EXTREME.format("max")),
    "min": _format(_EXTREME.format("min")),
    "div": _divide,
    "rem": _remainder,
    "sqrt": _format("tl.sqrt({})"),
    "exp2": _format("tl.exp2({})"),
    "log2": _format("log2({})"),
    "and": _format("{} & {}"),
    "or": _format("{} | {}"),
    "xor": _format("{} ^ {}"),
    "not": _format("~{}"),
    "shift_left": _format("{} << {}"),
    "shift_right_logical": _shift_right,
    "shift_right_arithmetic": _shift_right,
    "lt": _format("{} < {}"),
    "le": _format("{} <= {}"),
    "gt": _format("{} > {}"),
    "ge": _format("{} >= {}"),
    "eq": _format("{} == {}"),
    "ne": _format("{} != {}"),
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
    "iota": _iota,
    "reduce_max": _reduce("tl.reduce({}, {}, largest)"),
    "reduce_sum": _reduce("tl.sum({}, {})"),
}
"""By the name of a primitive, `rule(equation)`, which returns `(text, shape)`."""

POWERS = ("integer_pow", "square")
"""Primitives of which the writer makes several statements."""
