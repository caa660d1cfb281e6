"""The most memory of the device that this process has had in use at a time.

Nothing sets it back, so whoever wants the peak of one program gives it a part of its own.
"""

import jax

MIB = 2**20
SLACK = 4 * MIB
"""For scalars and counters, small temporary arrays of XLA, and rounding by the allocator, which
gives every array whole units of 256 bytes. Less than a page, so that one page too many is seen. It
is little because of `parts.Part.memory`."""


def so_far():
    """Bytes, or None of a device that does not tell."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def judge(seen, allowed):
    """What is recorded of a peak; raises `AssertionError` if it is beyond what is allowed.

    Args:
      seen: From `so_far`.
      allowed: Bytes by what they are for.
    """
    facts = {"peak_bytes": seen, "allowed_bytes": sum(allowed.values()), "allowed": allowed}
    if seen is None:
        return facts | {"peak": "this device does not tell"}
    over = seen - facts["allowed_bytes"]
    words = ", ".join(f"{what} {x / MIB:.1f}" for what, x in allowed.items())
    assert over <= 0, (
        f"a peak of {seen / MIB:.1f} MiB, {over / MIB:.1f} more than there should be: {words}"
    )
    return facts
