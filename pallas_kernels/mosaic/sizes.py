"""How many elements of a tile a thread of a kernel holds.

With fewer, more blocks of threads share a multiprocessor and hide each other's waits. With more,
there are fewer instructions for each element, as there is less to do once for every row. So most
kernels take 8: they are bound by memory, or need all the threads that there are. Those that are
bound by their instructions take 16, if as many of their threads have room as hide the waits.

Modelled, not measured, relative to the time of their bytes on an H200, bfloat16, power codec:

| | 8 | 16 | 32 |
|---|---:|---:|---:|
| `lion_step` | 1.00 | 1.00 | 1.03 |
| `lion_signs` | 1.10 | 1.01 | 1.34 |
| `lamb_moments` | 1.56 | 1.40 | 2.0 |
| `lamb_moments`, float32 | 1.00 | 1.29 | 1.5 |
| `adam_step` | 1.18 | 1.31 | 1.8 |

`python -m tests.gpu` times other numbers.
"""

import jax.numpy as jnp


def elements_of_a_thread(spec, dtypes):
    """For a step of these choices, with gradients and parameters of these dtypes."""
    if spec.per_thread is not None:
        return spec.per_thread
    as_signs = spec.rule.form == "sign" and spec.emit != "params"
    narrow = all(jnp.dtype(dtype).itemsize == 2 for dtype in dtypes)
    two_powers = len(spec.codecs) == 2 and all(codec.name == "power" for codec in spec.codecs)
    return MORE if narrow and (as_signs or (spec.rule.ratio and two_powers)) else FEW


FEW, MORE = 8, 16
