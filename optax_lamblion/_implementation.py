"""Which code runs a step, and why: the words of it. `pallas_kernels._dispatch` decides."""

from pallas_kernels import _dispatch
from pallas_kernels.mosaic_tile import TILE, why_not_blocks


def check_kernels_exist(implementation, bits, block_size):
    """Raises `ValueError` where kernels are asked for by name and there are none."""
    if implementation != "mosaic":
        return
    if why := "there are kernels for 8-bit state only" if bits != 8 else why_not_blocks(block_size):
        raise ValueError(
            f'`implementation="mosaic"` cannot run this optimizer: {why}. Leave it to '
            "`implementation=None`, or use what there are kernels for."
        )


def explain(names):
    """`(name, implementation, reason)` for every optimizer name: what None picks here."""
    for_8_bits, why = _dispatch.describe()
    if for_8_bits == "mosaic":
        why += f"; leaves of fewer than {TILE} elements, and those kept in 32 bits, go through XLA"
    rows = []
    for name in names:
        if name.endswith("8bit"):
            rows.append((name, for_8_bits, why))
        else:
            rows.append((name, "xla", "the kernels are for 8-bit state"))
    return rows
