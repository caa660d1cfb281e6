"""Which code runs a step, and why: the words of it. `pallas_kernels.dispatch` decides."""

import jax

from optax_lamblion._paging.memory import KIND, memory_kinds
from optax_lamblion._paging.tpus import REFUSAL
from pallas_kernels import dispatch
from pallas_kernels.mosaic.tile import TILE, why_not_blocks


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
    for_8_bits, why = dispatch.describe()
    if for_8_bits == "mosaic":
        why += f"; leaves of fewer than {TILE} elements, and those kept in 32 bits, go through XLA"
    rows = []
    for name in names:
        implementation, reason = "xla", "the kernels are for 8-bit state"
        if name.endswith("8bit"):
            implementation, reason = for_8_bits, why
        if name.startswith("paged_"):
            implementation, reason = _explain_paged(name, implementation, reason)
        rows.append((name, implementation, reason))
    return rows


def _explain_paged(name, implementation, reason):
    device = jax.local_devices()[0]
    if device.platform == "tpu" and name.endswith("8bit"):
        return "none", REFUSAL.format(f"`{name.removeprefix('paged_')}`")
    if KIND in (kinds := memory_kinds(device)):
        return implementation, f"{reason}; state sleeps in memory of kind {KIND}"
    there = ", ".join(sorted(kinds))
    return "none", f"{device.platform.upper()} has no memory of kind {KIND}, only {there}"
