"""The command line: `optax-lamblion train | memory | info | bench | convert`.

Each command is a module with `add_arguments(parser)` and `run(args) -> exit status`. They are
imported when they are chosen, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from optax_lamblion.cli._errors import CommandError
from optax_lamblion.cli._output import printable

_COMMANDS = {
    "train": "train a small Flax model with several optimizers and compare them",
    "memory": "optimizer state in bytes for a model, and what a training step needs",
    "info": "what is installed, which devices there are and which implementation they get",
    "bench": "time one optimizer step against Optax's own",
    "convert": "checkpoints of bitsandbytes: look into, import, export",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: The arguments after the program's name; `sys.argv[1:]` by default.

    Returns:
      The exit status: 0 for success, 2 for input that cannot be used, 130 after Ctrl-C, 141 if
      nobody reads the output to its end.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        status = args.run(args)
        sys.stdout.flush()  # here, where it can still be said that it failed
        return status
    except BrokenPipeError:
        _write_no_more()
        return 141
    except (CommandError, OSError) as error:
        if isinstance(error, OSError):  # no room for the output, as a rule
            _write_no_more()
        print(f"optax-lamblion {args.command}: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _write_no_more() -> None:
    """Lets what is left of the output go, of which Python would complain at exit."""
    try:
        output = sys.stdout.fileno()
    except io.UnsupportedOperation:  # of a test, which is no file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optax-lamblion",
        description="Lion, LAMB and AdamW for JAX with 8-bit state: try, size, time, convert.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    chosen = next((word for word in arguments if word in _COMMANDS), None)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name == chosen:
            module = importlib.import_module(f"optax_lamblion.cli._{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
