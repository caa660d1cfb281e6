"""The direct rival: `flash_lion` of flashoptim-jax, on the same leaves and by the same clock."""

import jax.numpy as jnp

from tests.gpu import floors
from tests.gpu.records import Absent
from tests.gpu.time_ours import DTYPES, elements, large_leaves, model, trees
from tests.gpu.timing import Program


def programs(run):
    """Its step, for the large leaves and for a model of many tensors."""
    try:
        from flashoptim_jax import flash_lion  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Absent(f"flashoptim-jax cannot be imported: {error}") from None
    if run.interpret:
        raise Absent("its kernels need a GPU")
    for what, leaves in (("large", large_leaves(run)), ("gpt2", model("gpt2-124m", run))):
        for dtype, pair in DTYPES.items():
            p, g = (jnp.dtype(x).itemsize for x in pair)
            # 24 bits of a parameter are its default; it refuses them where there are 32 already.
            tx = flash_lion(1e-4, weight_decay=0.1, master_weight_bits=24 if p == 2 else None)
            params, grads = trees(leaves, pair)

            def carry(params=params, tx=tx):
                made = params()
                return made, tx.init(made)

            def step(carry, grads, tx=tx):
                return tx.step(carry[0], carry[1], grads)

            yield Program(
                f"{what}: flashoptim-jax flash_lion {dtype}",
                step,
                carry,
                grads,
                elements(leaves),
                floors.flash_lion(g, p),
                about={
                    "what": what,
                    "optimizer": "flash_lion",
                    "dtype": dtype,
                    "tensors": len(leaves),
                },
                profile=True,
            )
