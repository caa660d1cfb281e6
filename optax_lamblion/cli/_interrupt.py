"""Ctrl-C that ends a training run tidily: the first asks, the second insists."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C only makes the yielded function return `True`.

    A `KeyboardInterrupt` in the middle of a step would leave parameters that were donated and
    never replaced, so the loop is asked to stop between steps instead. The second Ctrl-C raises.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set  # only the main thread receives signals
        return

    def ask(signum, frame):
        del signum, frame
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step. Ctrl-C again to stop at once.", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
