"""How long fuzz tests go on: over the same few cases every day, and over new ones by `./dev fuzz`.

`./dev fuzz --minutes N` sets `FUZZ_MINUTES`, and runs what has "fuzz" or "properties" in its name.
A test of its own loop takes its seeds from `seeds`, one of hypothesis its `settings` from here.
"""

import os
import secrets
import time

import hypothesis

MINUTES = float(os.environ.get("FUZZ_MINUTES", 0))
"""For each test; 0 for the cases of every day."""


def seeds(usual):
    """Numbers that decide a case: `range(usual)`, or new ones until the time is over."""
    if not MINUTES:
        yield from range(usual)
        return
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        yield secrets.randbits(48)


def settings(usual):
    """Settings of hypothesis for so many examples, the same ones every day."""
    if not MINUTES:
        return hypothesis.settings(
            derandomize=True, max_examples=usual, deadline=None, database=None
        )
    # Hypothesis counts examples and not minutes; about ten are run in a second.
    return hypothesis.settings(max_examples=max(usual, int(600 * MINUTES)), deadline=None)
