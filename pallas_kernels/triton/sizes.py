"""How many elements of a tile a thread of a kernel holds.

With more, there are fewer instructions for each element, as there is less to do once for every row;
and they fill its registers, so that fewer threads share a multiprocessor. Instructions for each
element, and registers, on an H200, bfloat16, power codec:

| | 16 | 32 |
|---|---:|---:|
| `lion_step` | 37.5, 96 | 33.6, 168 |
| `lamb_moments` | 74.6, 96 | 68.1, 167 |
| `lamb_apply` | 23.6, 64 | 22.0, 128 |
| `adam_step` | 73.4, 128 | 67.6, 255 |

With fewer, what three slots need has room on every GPU.
"""

FEW, SOME, MORE = 8, 16, 32


def elements_of_a_thread(spec, dtypes):
    """For a step of these choices, with gradients and parameters of these dtypes."""
    del dtypes
    if spec is None:
        return SOME
    if spec.per_thread is not None:
        return spec.per_thread
    # As many as leave room for all slots, of which a dynamic one takes two.
    slots = sum(2 if codec.name == "dynamic" else 1 for codec in spec.codecs)
    return {1: MORE, 2: SOME}.get(slots, FEW)
