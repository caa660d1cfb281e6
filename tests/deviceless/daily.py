"""Which cases are compiled every day: of each rule and each kind of step one, for one GPU.

The others are compiled for tests that are marked as long, see `tests.slow`: what other GPUs, and a
second rule, dtype, kind of axes or number of leaves, make of the same code.
"""

import fnmatch
import itertools

import pytest

_EVERYWHERE = "harness/in_place", "kernel/lion/power/bf16"
"""Every GPU's own assembler takes our kernels."""

DAILY = {
    "h200": (
        "harness/*",
        # Kernels: of each rule, and of Lion each way to emit, dtype, rounding, and kind of leaf.
        "kernel/*/power/bf16",
        "kernel/*/bf16/params",
        "kernel/lion/dynamic/bf16",
        "kernel/lion/bf16/updates",
        "kernel/adam/bf16/updates",
        "kernel/lion/f32/params",
        "kernel/lion/bf16/params/ragged",
        "kernel/lion/compensated",
        "kernel/lion/stochastic",
        "kernel/lion/huge",
        "kernel/lion/bf16/block 32",
        "kernel/lion/bf16/block 1024",
        "kernel/quantize",
        "kernel/dequantize",
        "kernel/8 leaves/lion8bit/True",
        "throughput/*",
        # Steps of one large leaf, by kernels and by XLA, and of many small ones.
        "lion8bit/bf16/*",
        "lion8bit/f32/apply_fused",
        "lamb8bit/bf16/apply_fused*",
        "adamw8bit/bf16/apply_fused",
        "lion32bit/bf16/*",
        "lion32bit/f32/*",
        "lamb32bit/bf16/*",
        "lamb32bit/f32/*",
        "adamw32bit/*/apply_fused",
        "optax.*",
        "small leaves/lion8bit",
        # Behind clips.
        "clipped/lion8bit/ours",
        "clipped/lion8bit/Optax's",
        "clipped/lion8bit/scaled*",
        # On eight GPUs.
        "lion8bit/8 explicit/apply_fused",
        "lamb8bit/8 auto/apply_fused",
        "lion32bit/8 *",
        "lamb32bit/8 explicit/apply_fused",
        "paged_lion8bit/8 auto/apply_fused",
        "paged_lion8bit/8 auto/init",
        # Of pages: whole leaves, and leaves in pieces.
        "paged_lion8bit/16 leaves/*",
        "paged_lion8bit/3 large leaves/apply_fused",
        "paged_lion8bit/3 large leaves/init",
        "paged_lion8bit/3 large leaves/restored",
        "paged_lion8bit/2 ragged leaves/apply_fused",
        "paged_lion8bit/scan",
        "paged_lion8bit/training*",
        "paged_lamb8bit/3 large leaves/apply_fused",
        "paged_lion32bit/16 leaves/apply_fused",
        "paged_lamb32bit/16 leaves/apply_fused",
        # By Triton.
        "triton/*/ragged/apply_fused",
        "triton/lion8bit/whole/update",
        "triton/quantize",
        "triton/dequantize",
    ),
    "a100": _EVERYWHERE,
    "l40s": _EVERYWHERE,
    "b200": _EVERYWHERE,
}
"""Names by target; `*` is anything."""


def is_daily(target, name):
    """Whether the case of that name is compiled for a target every day."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in DAILY[target])


def each(cases, values, target="h200"):
    """A test of every combination of values, long where a case that it needs is not daily.

    Args:
      cases: Names of the cases that the test needs, with the names of values in braces.
      values: As of `pytest.mark.parametrize`, by name, or by names such as `"rule, dtypes"`.
      target: For what they are compiled, unless there is a value of that name.
    """
    names = [name for key in values for name in key.split(", ")]
    rows = []
    for row in itertools.product(*values.values()):
        flat = [x for key, part in zip(values, row, strict=True) for x in _parts(key, part)]
        given = {"target": target} | dict(zip(names, flat, strict=True))
        daily = all(is_daily(given["target"], case.format(**given)) for case in cases)
        rows.append(pytest.param(*flat, marks=() if daily else pytest.mark.long))
    return pytest.mark.parametrize(names, rows)


def _parts(key, value):
    return value if ", " in key else (value,)
