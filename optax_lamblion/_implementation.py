"""Which code runs a step, and why: the words of it. `pallas_kernels.dispatch` decides."""

import jax

from optax_lamblion._paging.memory import KIND, memory_kinds
from optax_lamblion._paging.tpus import REFUSAL
from pallas_kernels import dispatch
from pallas_kernels.tiled.rows import TILE


def check_kernels_exist(implementation, bits, block_size):
    """Raises `ValueError` where kernels are asked for by name and there are none."""
    if implementation in (None, dispatch.GENERAL):
        return
    why = "there are kernels for 8-bit state only" if bits != 8 else None
    why = why or dispatch.IMPLEMENTATIONS[implementation].steps.why_not_blocks(block_size)
    if why:
        raise ValueError(
            f'`implementation="{implementation}"` cannot run this optimizer: {why}. Leave it to '
            "`implementation=None`, or use what there are kernels for."
        )


def explain(names):
    """`(name, implementation, reason)` for every optimizer name: what None picks here."""
    for_8_bits, why = chosen()
    rows = []
    for name in names:
        implementation, reason = "xla", "the kernels are for 8-bit state"
        if name.endswith("8bit"):
            implementation, reason = for_8_bits, why
        if name.startswith("paged_"):
            implementation, reason = _explain_paged(name, implementation, reason)
        rows.append((name, implementation, reason))
    return rows


def chosen():
    """`(implementation, why)` that None means for large 8-bit leaves in this process."""
    reasons = dispatch.reasons()
    name = next(name for name, reason in reasons.items() if not reason)
    others = [f"not {other}: {reason}" for other, reason in reasons.items() if reason]
    if name == dispatch.GENERAL:
        return name, "; ".join(others)
    before = others[: list(reasons).index(name)]
    here = dispatch.gpu_in_words()
    why = [
        f"{here}, and kernels move fewer bytes",
        *before,
        f"leaves of fewer than {TILE} elements, and those kept in 32 bits, go through XLA",
    ]
    return name, "; ".join(why)


def _explain_paged(name, implementation, reason):
    device = jax.local_devices()[0]
    if device.platform == "tpu" and name.endswith("8bit"):
        return "none", REFUSAL.format(f"`{name.removeprefix('paged_')}`")
    if KIND in (kinds := memory_kinds(device)):
        return implementation, f"{reason}; state sleeps in memory of kind {KIND}"
    there = ", ".join(sorted(kinds))
    return "none", f"{device.platform.upper()} has no memory of kind {KIND}, only {there}"
