"""Bytes of main memory that a step has to move per parameter, in the form that it has.

Counted from what the form reads and writes if nothing stays in a cache: gradient `g`, parameter `p`
(bytes of an element), blocks of 256 with one float32 scale. `python -m tests.deviceless.report`
counts the same from the compiled programs.
"""

BLOCK = 256
_SCALES = 2 * 4 / BLOCK
"""A scale read and written."""


RESIDUAL = 2
"""A residual of a parameter, read and written."""


def lion8(g, p, form):
    """8-bit Lion. Forms: "apply_fused", "update" (with `apply_updates`), both also by XLA."""
    return {
        # Gradient once, parameter and codes there and back.
        "apply_fused": g + 2 * p + 2 + _SCALES,
        # A sign goes through memory on its way to the parameter.
        "update": g + 2 * p + 2 + 2 + _SCALES,
        # The scales of new codes have to be known first: gradient and codes are read twice.
        "apply_fused, xla": 2 * g + 2 * p + 3 + 2 * _SCALES,
        "update, xla": 2 * g + 2 * p + 5 + 2 * _SCALES,
    }[form]


def lamb8(g, p, form):
    """8-bit LAMB, by the same forms. Between its passes the norms have to be known."""
    return {
        # New codes and norms; then the parameter from the codes.
        "apply_fused": g + 3 * p + 4 + 2 + 3 * _SCALES,
        # The second pass asks the gradient, too, which of its elements are usable.
        "update": 2 * g + 3 * p + 4 + 2 + 3 * _SCALES,
        "apply_fused, xla": 4 * g + 3 * p + 10 + 6 * _SCALES,
        "update, xla": 4 * g + 3 * p + 10 + 6 * _SCALES,
    }[form]


def adamw8(g, p, form):
    """8-bit AdamW, by the same forms but those of XLA, which are not timed."""
    return {
        "apply_fused": g + 2 * p + 4 + 2 * _SCALES,
        # As of LAMB, the second pass asks the gradient, too.
        "update": 2 * g + 2 * p + 4 + 2 + 3 * _SCALES,
    }[form]


def clip(g, by):
    """A clip by the global norm, of gradients of `g` bytes: the norm, and Optax's product."""
    return {"ours": g, "optax": 3 * g}[by]


def lion32(g, p, mu):
    """Lion with a momentum of `mu` bytes, in one pass."""
    return g + 2 * p + 2 * mu


def lamb32(g, p, slot):
    """LAMB with two slots of `slot` bytes each: moments and norms, then the parameter."""
    return g + 3 * p + 6 * slot


def adam(g, p, slot):
    """Adam with two slots of `slot` bytes each, in one pass."""
    return g + 2 * p + 4 * slot


def flash_lion(g, p):
    """FlashOptim's Lion: groups of 32, float16 scales, and error bits for 16-bit parameters."""
    return g + 2 * p + 2 + 2 * 2 / 32 + (2 if p == 2 else 0)
