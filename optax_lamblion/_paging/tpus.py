"""TPUs: codes in their host memory are refused, before XLA fails on them.

It lays a copy of them on the device out in another way than the original, and stops at an error of
its own, or ends the process (jax 0.12.0.1, libtpu 0.0.52, for v5e). Float32 state it compiles.
"""

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

REFUSAL = (
    "XLA cannot compile a step for TPUs whose codes of 8 bits are in host memory. Use {}, which "
    "keeps its state on the device, or a paged optimizer in 32 bits"
)


def no_codes_on_tpus(x):
    """An array, unchanged; of codes it cannot be compiled for a TPU, whatever is here."""
    return _moved.bind(x) if x.dtype == jnp.uint8 else x


_moved = Primitive("moved_codes")
_moved.def_abstract_eval(lambda x: x)
_moved.def_impl(lambda x: x)
ad.deflinear2(_moved, lambda tangent, x: [tangent])
batching.primitive_batchers[_moved] = lambda xs, dims: (_moved.bind(*xs), dims[0])


def _refuse(context, x):
    raise ValueError(REFUSAL.format("a resident optimizer in 8 bits") + ".")


mlir.register_lowering(_moved, lambda context, x: [x])
mlir.register_lowering(_moved, _refuse, platform="tpu")
