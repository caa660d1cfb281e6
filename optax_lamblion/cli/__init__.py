"""The command line: `optax-lamblion train | memory | convert | info | bench`.

`_app` declares the commands and `_options` what each of them takes. Neither imports JAX, so that
`--help` answers at once. The module that does the work is imported when its command runs.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from optax_lamblion.cli._errors import CommandError, require

COMMANDS = ("train", "memory", "convert", "info", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: The arguments after the program's name; `sys.argv[1:]` by default.

    Returns:
      The exit status: 0 for success, 2 for input that cannot be used, 130 after Ctrl-C, 141 if
      nobody reads the output to its end.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        require({"cyclopts": "cyclopts", "rich": "rich"})
        from optax_lamblion.cli import _app

        status = _app.run(arguments)
        sys.stdout.flush()  # here, where a failure can still be reported
        return status
    except BrokenPipeError:
        _write_no_more()
        return 141
    except (CommandError, OSError) as error:
        if isinstance(error, OSError):  # no space left for the output, as a rule
            _write_no_more()
        _report(error, arguments)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _report(error: Exception, arguments: Sequence[str]) -> None:
    """One line on standard error, whatever is in it."""
    from optax_lamblion.cli._output import printable

    command = next((f" {word}" for word in arguments if word in COMMANDS), "")
    print(f"optax-lamblion{command}: error: {printable(str(error))}", file=sys.stderr)


def _write_no_more() -> None:
    """Drops output that is still buffered, about which Python would complain at exit."""
    try:
        output = sys.stdout.fileno()
    except io.UnsupportedOperation:  # a test's output, which is no file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
