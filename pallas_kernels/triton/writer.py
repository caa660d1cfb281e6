"""Writes a jaxpr down in the Triton language, a statement for every equation."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from pallas_kernels.triton.rules import RULES, Equation, Value, full, literal
from pallas_kernels.triton.tracing import Pointer, Traced

INDENT = "    "
_ALIASES = ("copy", "optimization_barrier", "stop_gradient")


class Reference(NamedTuple):
    """What a program sees of an array, and how it masks that."""

    pointer: Pointer
    mask: str
    """Text of a mask, or nothing."""


class Writer:
    """Writes equations as statements.

    Attributes:
      lines: What is written so far.
    """

    def __init__(self, depth, names):
        self.lines, self._depth, self._names = [], depth, names

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
            raise NotImplementedError("a body for Triton kernels must not hold tables")
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
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if inner is not None:
            return self._run(inner.jaxpr, inner.consts, args)
        if name in ("new_ref", "ref"):
            return args
        if name in ("get", "swap"):
            return self._access(equation, args)
        if name == "cond":
            return self._branch(equation, args)
        if name in _ALIASES:
            return args
        types = tuple(x.aval for x in equation.invars)
        (out,) = (x.aval for x in equation.outvars)
        if name in ("integer_pow", "square"):
            return [self._power(args[0], params.get("y", 2))]
        if name == "convert_element_type" and args[0].literal is not None:
            return [literal(args[0].literal, out)]
        if args and all(x.literal is not None for x in args):
            # As numbers of their types, which numbers of Python are not.
            args = [self._let(full(args[0], types[0]), types[0].shape), *args[1:]]
        made = Equation(name, params, tuple(args), types, out)
        if name not in RULES:
            raise made.refuse("yet")
        text, shape = RULES[name](made)
        return [Value(text, shape) if text in made.texts else self._let(text, shape)]

    def _access(self, equation, args):
        """Reads or writes what a reference shows."""
        (pointer, mask), args = args[0], args[1:]
        writes = equation.primitive.name == "swap"
        value, index = (args[0], args[1:]) if writes else (None, args)
        at = self._address(pointer, jax.tree.unflatten(equation.params["tree"], index))
        (out,) = (x.aval for x in equation.outvars)
        if writes:
            self.line(f"tl.store({at}, {full(value, out)}{mask and f', mask={mask}'})")
            return [None]
        # Codes of 0, and scales and numbers of 0, lead to moments of 0.
        return [self._let(f"tl.load({at}{mask and f', mask={mask}, other=0'})", out.shape)]

    def _address(self, pointer, transforms):
        if pointer.kind != "small":
            if transforms:
                raise NotImplementedError(f"a part of {pointer.name}, of which a tile has its own")
            return f"{pointer.name} + {'at' if pointer.kind == 'elements' else 'row'}"
        if not transforms and not pointer.shape:
            return pointer.name
        (indexer,) = transforms
        if len(indexer.indices) > 2:
            raise NotImplementedError(f"{pointer.name} has more than two axes")
        text = "0"
        for i, n in zip(indexer.indices, pointer.shape, strict=True):
            i = i.text if isinstance(i, Value) else i
            text = i if text == "0" else f"{text} * {n} + {i}"
        return f"{pointer.name} + {text}"

    def _branch(self, equation, args):
        (index, *args) = args
        if equation.outvars or len(equation.params["branches"]) != 2:
            raise NotImplementedError("branches of Triton kernels return nothing, and are two")
        no, yes = equation.params["branches"]
        for word, closed in ((f"if {index.text} != 0:", yes), ("else:", no)):
            self.line(word)
            self._depth += 1
            self._run(closed.jaxpr, closed.consts, args)
            self._depth -= 1
        return []

    def _power(self, x, n):
        """By squaring, as XLA and Mosaic do."""
        result = None
        while n:
            if n & 1:
                result = x if result is None else self._let(f"{result.text} * {x.text}", x.shape)
            n >>= 1
            if n:
                x = self._let(f"{x.text} * {x.text}", x.shape)
        return result
