"""How many elements of a tile a thread of a kernel holds.

With more, there are fewer instructions for each element, as there is less to do once for every row;
and they fill its registers, so that fewer threads share a multiprocessor and hide each other's
waits. Instructions for each element, and the time relative to that of the bytes, which is modelled
and not measured, on an H200, bfloat16, power codec:

| | 8 | 16 | 32 |
|---|---:|---:|---:|
| `lion_step` | 45.0, 1.09 | 37.6, 1.01 | 33.6, 1.00 |
| `lamb_moments` | 87.8, 1.53 | 74.6, 1.42 | 68.1, 1.47 |
| `lamb_apply` | 26.6, 1.01 | 23.6, 1.00 | 22.0, 1.00 |
| `adam_step` | 84.5, 1.22 | 73.4, 1.39 | 67.6, 1.70 |

`python -m tests.triton.modelled` models others, for further GPUs. Dynamic codecs and three slots
take more registers: with 8, next to nothing is spilled on any GPU.
"""

FEW, SOME, MOST = 8, 16, 32


def elements_of_a_thread(spec, dtypes):
    """For a step of these choices, with gradients and parameters of these dtypes."""
    del dtypes
    if spec is None:
        return SOME
    if spec.per_thread is not None:
        return spec.per_thread
    slots = sum(2 if codec.name == "dynamic" else 1 for codec in spec.codecs)
    if slots == 1:
        return MOST
    return SOME if slots == 2 and (spec.rule.ratio or spec.rule.form == "sign") else FEW
