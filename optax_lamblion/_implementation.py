"""Which code runs a step, and why."""

IMPLEMENTATIONS = ("xla",)


def check_implementation(implementation):
    """Raises `ValueError` unless the implementation exists."""
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        known = ", ".join(f'"{name}"' for name in IMPLEMENTATIONS)
        raise ValueError(
            f"`implementation={implementation!r}` does not exist. Use None for the fastest one "
            f"that does, or one of {known}."
        )


def explain(names):
    """`(name, implementation, reason)` for every optimizer name: what `None` picks here."""
    reason = "the only implementation so far; XLA compiles it for CPU, GPU and TPU"
    return [(name, "xla", reason) for name in names]
