"""Donation of arrays in several kinds of memory.

`jax.jit` pairs every donated argument with a result of its shape and dtype, before it knows in
which memory the results are. A parameter in float32 has the shape and dtype of its momentum, so an
argument on the device can be paired with a result on the host: with results in another order than
the arguments, or with one of the two donated alone. Such a program is wrong. On the CPU it ends the
process. (XLA reports such pairs, openxla/xla#29270; when JAX no longer makes them, this can go.)

`repair` is an identity that sets the pairs right. When it is lowered, the program's function has
its signature already, with the pairs and every memory kind as attributes.
"""

import collections

import jax
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.interpreters import ad, batching, mlir

_ALIAS, _KIND = "tf.aliasing_output", "mhlo.memory_kind"


def repair(tree):
    """A tree of arrays, unchanged.

    One array passes through the primitive, so that lowering a program with the tree comes by it.
    """
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([_repair.bind(leaves[0]), *leaves[1:]]) if leaves else tree


_repair = Primitive("repair_donation")
_repair.def_abstract_eval(lambda x: x)
_repair.def_impl(lambda x: x)
ad.deflinear2(_repair, lambda tangent, x: [tangent])
batching.primitive_batchers[_repair] = lambda xs, dims: (_repair.bind(*xs), dims[0])


def _lower(context, x):
    for operation in context.module_context.module.body.operations:
        if operation.operation.name == "func.func" and _name(operation) == "main":
            _repair_pairs(operation)
    return [x]


mlir.register_lowering(_repair, _lower)


def _name(function):
    return ir.StringAttr(function.attributes["sym_name"]).value


def _repair_pairs(function):
    """Pairs donated arguments with results of their type in their memory, or with none."""
    if "arg_attrs" not in function.attributes or "res_attrs" not in function.attributes:
        return  # nothing is donated
    arguments = [{x.name: x.attr for x in attrs} for attrs in function.arg_attrs]
    results = [{x.name: x.attr for x in attrs} for attrs in function.result_attrs]
    type_ = function.type

    def key(value_type, attributes):
        kind = attributes.get(_KIND)
        return str(value_type), "device" if kind is None else ir.StringAttr(kind).value

    inputs = [key(*pair) for pair in zip(type_.inputs, arguments, strict=True)]
    outputs = [key(*pair) for pair in zip(type_.results, results, strict=True)]
    pairs = {
        i: ir.IntegerAttr(attributes[_ALIAS]).value
        for i, attributes in enumerate(arguments)
        if _ALIAS in attributes
    }
    wrong = [i for i, o in pairs.items() if inputs[i] != outputs[o]]
    if not wrong:
        return
    taken = {o for i, o in pairs.items() if i not in wrong}
    free = collections.defaultdict(list)
    for o, output in enumerate(outputs):
        if o not in taken:
            free[output].append(o)
    for i in wrong:
        alias = arguments[i].pop(_ALIAS)
        if free[inputs[i]]:
            o = free[inputs[i]].pop(0)
            arguments[i][_ALIAS] = ir.IntegerAttr.get(alias.type, o)
    function.arg_attrs = ir.ArrayAttr.get([ir.DictAttr.get(x) for x in arguments])
