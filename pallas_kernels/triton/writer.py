"""Writes a jaxpr down in the Triton language, a statement for every equation."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from pallas_kernels.triton.rules import POWERS, RULES, Equation, Value, full, literal
from pallas_kernels.triton.tracing import Pointer, Traced

INDENT = "    "
_ALIASES = ("new_ref", "ref", "copy", "optimization_barrier", "stop_gradient")
_INLINED = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
"""Calls of a jaxpr, and the parameter that it is. Loops and reductions have jaxprs, too."""


class Reference(NamedTuple):
    """What a program sees of an array, and how it masks that."""

    pointer: Pointer
    mask: str
    """Text of a mask, or nothing."""


class Writer:
    """Writes equations as statements.

    Args:
      depth: Of the first statements.
      names: Numbers of variables.
      tile: The shape of a tile, `(rows, block)`.

    Attributes:
      lines: What is written so far.
    """

    def __init__(self, depth, names, tile):
        self.lines, self._depth, self._names = [], depth, names
        self._shapes = tile[:1], tile

    def line(self, text):
        """Writes a line."""
        self.lines.append(INDENT * self._depth + text)

    def body(self, traced: Traced, number, inside, references):
        """Writes what a program does."""
        closed = traced.jaxpr
        self._run(closed.jaxpr, closed.consts, [number, inside, *references])

    def _let(self, text, shape):
        name = f"v{next(self._names)}"
        self.line(f"{name} = {text}")
        return Value(name, shape)

    def _run(self, jaxpr, constants, args):
        if any(map(np.ndim, constants)):
            raise NotImplementedError(
                "bodies of Triton kernels hold numbers only, not arrays such as a table: compute "
                "what it says, or pass it as `Small`"
            )
        numbers = [literal(x, v.aval) for x, v in zip(constants, jaxpr.constvars, strict=True)]
        known: dict[Any, Any] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*numbers, *args], strict=True)
        )

        def read(atom):
            return literal(atom.val, atom.aval) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            made = self._equation(equation, [read(x) for x in equation.invars])
            known.update(zip(equation.outvars, made, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def _equation(self, equation, args):
        name, params = equation.primitive.name, equation.params
        if name in _INLINED:
            inner = params[_INLINED[name]]
            return self._run(inner.jaxpr, inner.consts, args)
        if name in _ALIASES:
            return args
        if name in ("get", "swap"):
            return self._access(equation, args)
        if name == "cond":
            return self._branch(equation, args)
        return [self._value(equation, args)]

    def _value(self, equation, args):
        """What is computed by a rule, or a power."""
        name, types = equation.primitive.name, tuple(x.aval for x in equation.invars)
        out: Any = equation.outvars[0].aval if equation.outvars else None
        made = Equation(name, equation.params, tuple(args), types, out)
        if name not in RULES and name not in POWERS:
            raise made.unknown()
        is_number = out.size == 1 and name != "iota"
        if out.shape not in self._shapes and not is_number:
            raise made.refuse(
                "with a result that is neither a tile, nor a row's value, nor a number"
            )
        if name == "convert_element_type" and args[0].literal is not None:
            return literal(args[0].literal, out)
        # Numbers of Python have no dtype. Where no operand gives it, one of them is given its own.
        first = 1 if name == "select_n" else 0
        if len(args) > first and all(x.literal is not None for x in args[first:]):
            typed = self._let(full(args[first], types[first]), types[first].shape)
            made = made._replace(args=(*args[:first], typed, *args[first + 1 :]))
        if name in POWERS:
            return self._power(made)
        text, shape = RULES[name](made)
        return Value(text, shape) if text in made.texts else self._let(text, shape)

    def _access(self, equation, args):
        """Reads or writes what a reference shows."""
        (pointer, mask), args = args[0], args[1:]
        writes = equation.primitive.name == "swap"
        value, index = (args[0], args[1:]) if writes else (None, args)
        (out,) = (x.aval for x in equation.outvars)
        at = self._address(pointer, jax.tree.unflatten(equation.params["tree"], index), out.shape)
        if writes:
            self.line(f"tl.store({at}, {full(value, out)}{mask and f', mask={mask}'})")
            return [None]
        # Codes of 0, and scales and numbers of 0, lead to moments of 0.
        return [self._let(f"tl.load({at}{mask and f', mask={mask}, other=0'})", out.shape)]

    def _address(self, pointer, transforms, shape):
        if pointer.kind != "small":
            if transforms:
                raise NotImplementedError(
                    f"a Triton kernel reads and writes all of its tile of `{pointer.name}`, no part"
                )
            return f"{pointer.name} + {'at' if pointer.kind == 'elements' else 'row'}"
        if shape:
            raise NotImplementedError(
                f"a Triton kernel reads and writes single numbers of `{pointer.name}`, an array of "
                f"shape {pointer.shape}, and not {shape} of them at once"
            )
        indices = [
            index.text if isinstance(index, Value) else index
            for transform in transforms
            for index in transform.indices
        ]
        if len(indices) > 2:
            raise NotImplementedError(
                f"a Triton kernel finds numbers of arrays with one axis or two, and "
                f"`{pointer.name}` has shape {pointer.shape}"
            )
        if len(indices) == 2:
            indices = [f"{indices[0]} * {pointer.shape[1]} + {indices[1]}"]
        return " + ".join([pointer.name, *map(str, indices)])

    def _branch(self, equation, args):
        (index, *args) = args
        branches = equation.params["branches"]
        if equation.outvars or len(branches) != 2:
            raise NotImplementedError(
                "a branch of a Triton kernel (`lax.cond`) is one of two and returns nothing: it "
                f"stores what it makes. This one is of {len(branches)} and returns "
                f"{len(equation.outvars)}"
            )
        no, yes = branches
        for word, closed in ((f"if {index.text} != 0:", yes), ("else:", no)):
            self.line(word)
            self._depth += 1
            before = len(self.lines)
            self._run(closed.jaxpr, closed.consts, args)
            if len(self.lines) == before:
                self.line("pass")
            self._depth -= 1
        return []

    def _power(self, equation):
        """By squaring, as XLA and Mosaic do."""
        (x,), n = equation.args, equation.params.get("y", 2)
        if n < 1:
            raise equation.refuse(f"to the power of {n}, only to positive ones")
        result = None
        while n:
            if n & 1:
                result = x if result is None else self._let(f"{result.text} * {x.text}", x.shape)
            n >>= 1
            if n:
                x = self._let(f"{x.text} * {x.text}", x.shape)
        return result
