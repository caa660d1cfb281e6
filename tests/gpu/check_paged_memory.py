"""A paged step has pages on the device, and `init` has nothing there.

One optimizer and one kind of leaves is a part, and so a process: its peak can only rise. The claims
come in the order in which they allow more.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from optax_lamblion import apply_fused
from tests.gpu import paging, peak
from tests.gpu.timing import wave

IN_FLIGHT = 2
LEAVES = {"grouped": (32, (2048, 2048)), "pieces": (8, (4096, 4096))}
"""How many, of which shape: 2**27 elements. Even in 8 bits their state is more than all that is
allowed for it, and a page more than the slack."""
_TINY = {"grouped": (8, (512, 512)), "pieces": (2, (1100, 1024))}


def checks(case, run):
    """`(name, function)` for a case such as `"lion8bit grouped"`."""
    watched = Watched(case, run)
    yield f"init has no state on the device: paged_{case}", watched.init
    yield f"nor has init in jit: paged_{case}", watched.init_in_jit
    yield f"a step has pages on the device: paged_{case}", watched.step


class Watched:
    """Parameters, and what their optimizer does to the peak of this process."""

    def __init__(self, case, run):
        name, kind = case.split()
        self._count, self._shape = (_TINY if run.interpret else LEAVES)[kind]
        forms = self._tree(jax.ShapeDtypeStruct)
        room = max(x.room for x in paging.extents(name, forms))
        page = 4 * room if kind == "grouped" else room // 2 + 1
        options: dict[str, Any] = {"page_bytes": max(page, 2**20), "pages_in_flight": IN_FLIGHT}
        self._page_bytes = options["page_bytes"]
        self._tx = paging.optimizer(name, **options)
        self._plan = paging.pages(name, forms, **options)
        self._step = jax.jit(functools.partial(apply_fused, self._tx), donate_argnums=(0, 2))
        state = paging.abstract(functools.partial(self._tx.init, forms))
        # Now, as what compilers try out would be seen on top of the arrays.
        self._compiled = self._step.lower(forms, forms, state).compile()
        self._state_bytes = paging.nbytes(state)
        self._params = jax.block_until_ready(self._tree(functools.partial(_made, 1.0)))

    def _tree(self, make):
        return {f"leaf{i:02}": make(self._shape, jnp.bfloat16) for i in range(self._count)}

    @property
    def _allowed(self):
        return {"parameters": paging.nbytes(self._params), "slack": peak.SLACK}

    def init(self):
        jax.block_until_ready(self._tx.init(self._params))
        return self._judge(self._allowed)

    def init_in_jit(self):
        """Constants are made on the device: there is one page, one that is left, one on its way."""
        jax.block_until_ready(jax.jit(self._tx.init)(self._params))
        return self._judge(self._allowed | {"pages": 3 * self._page_bytes})

    def step(self):
        params, grads = self._params, self._tree(functools.partial(_made, 2.0**-6))
        # Three sums for each tile of a kernel, and two of them put together: 20 bytes for 1024
        # elements at most.
        norms = 20 * self._count * math.prod(self._shape) // 1024
        allowed = self._allowed | {
            "gradients": paging.nbytes(grads),
            "norms": norms,
            "pages": (IN_FLIGHT + 1) * self._page_bytes,
        }
        state = self._tx.init(params)
        for _ in range(3):
            params, state = jax.block_until_ready(self._compiled(params, grads, state))
        self._params = params
        memory: Any = self._compiled.memory_analysis()
        facts = {"pages": len(self._plan), "temporary_bytes": memory.temp_size_in_bytes}
        return self._judge(allowed) | facts

    def _judge(self, allowed):
        seen = peak.so_far()
        spare = sum(x for what, x in allowed.items() if what not in ("parameters", "gradients"))
        if seen is not None:
            assert spare < self._state_bytes, "the check would not notice a state on the device"
            assert peak.SLACK < self._page_bytes, "nor would it notice one page too many"
        facts = {"state_bytes": self._state_bytes, "page_bytes": self._page_bytes}
        return facts | peak.judge(seen, allowed)


def _made(scale, shape, dtype):
    return wave(shape, dtype, 1.0, scale)
