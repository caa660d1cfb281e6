"""Pieces of Markdown that figures consist of."""


def table(head, rows, words=1):
    """A table; the first columns, of words, are aligned left and the others right."""
    aligned = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, aligned, *rows))


def number(x):
    """Three digits at most, as one reads a ratio: 0.48, 2.31, 14.2, 523."""
    return f"{x:.0f}" if x >= 99.5 else f"{x:.1f}" if x >= 9.95 else f"{x:.2f}"


def spread(middle, quartiles):
    """A median with its quartiles."""
    low, high = map(number, quartiles)
    return f"{number(middle)} ({low}–{high})"
