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
    entry = dispatch.IMPLEMENTATIONS[implementation]
    why = why or entry.steps.why_not_blocks(block_size) or entry.not_installed()
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
    if not dispatch.has_kernels():
        return name, f"the kernels are for GPUs, and this is {dispatch.platform_in_words()}"
    before = list(reasons)[: list(reasons).index(name)]
    others = [f"not {other}: {reasons[other]}" for other in before]
    if name == dispatch.GENERAL:
        return name, "; ".join(others)
    why = [
        f"{dispatch.gpu_in_words()}, and kernels move fewer bytes",
        *others,
        f"leaves of fewer than {TILE} elements, and those kept in 32 bits, go through XLA",
    ]
    return name, "; ".join(why)


def here():
    """`(name, what it is, why it does not run here or "")` for every implementation."""
    reasons = dispatch.reasons()
    return [(name, _WORDS[name], reasons[name]) for name in reasons]


_WORDS = {
    "mosaic": "kernels by Pallas, for NVIDIA GPUs from the A100 on",
    "triton": "kernels by Triton, for NVIDIA GPUs from the T4 on, and AMD GPUs",
    "xla": "the same without kernels, everywhere",
}


def _explain_paged(name, implementation, reason):
    device = jax.local_devices()[0]
    if device.platform == "tpu" and name.endswith("8bit"):
        return "none", REFUSAL.format(f"`{name.removeprefix('paged_')}`")
    if KIND in (kinds := memory_kinds(device)):
        return implementation, f"{reason}; state is kept in memory of kind {KIND}"
    there = ", ".join(sorted(kinds))
    return "none", f"{device.platform.upper()} has no memory of kind {KIND}, only {there}"
