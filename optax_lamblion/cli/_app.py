"""The commands, and how a command line becomes a call of one of them.

Signatures, `_options` and docstrings are all that Cyclopts needs: it parses, converts, checks and
writes the help. Options come from the command line first, then from the file of `--config`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from cyclopts.config import Dict
from rich.console import Console

import optax_lamblion
from optax_lamblion.cli import COMMANDS
from optax_lamblion.cli._errors import CommandError
from optax_lamblion.cli._options import (
    BenchOptions,
    ConvertOptions,
    Flag,
    MemoryOptions,
    TrainOptions,
)


class _Console(Console):
    def on_broken_pipe(self) -> None:  # or rich exits by itself
        raise BrokenPipeError


app = App(
    name="optax-lamblion",
    help="Lion, LAMB and AdamW for JAX with 8-bit optimizer state: try, size, convert, time.",
    help_format="markdown",
    version=lambda: optax_lamblion.__version__,
    default_parameter=Parameter(negative=()),
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)


@app.command(sort_key=COMMANDS.index("train"))
def train(options: TrainOptions | None = None) -> int:
    """Train a small Flax model with several optimizers and compare them."""
    from optax_lamblion.cli import _train

    return _train.run(options or TrainOptions())


@app.command(sort_key=COMMANDS.index("memory"))
def memory(options: MemoryOptions | None = None) -> int:
    """Show the memory that optimizer state takes for a model, and what a training step needs."""
    from optax_lamblion.cli import _memory

    return _memory.run(options or MemoryOptions())


@app.command(sort_key=COMMANDS.index("convert"))
def convert(source: Path, target: Path | None = None, /, *, options: ConvertOptions | None = None):
    """Look into, import and export checkpoints of bitsandbytes.

    Args:
      source: A .pt or .safetensors file of bitsandbytes, or an Orbax checkpoint with a Lion state.
      target: A .pt or .safetensors file to write for bitsandbytes, or a new folder to write for
        Orbax. Without it, the command shows what is in the source.
      options: See there.
    """
    from optax_lamblion.cli import _convert

    return _convert.run(source, target, options or ConvertOptions())


@app.command(sort_key=COMMANDS.index("info"))
def info(*, json: Flag = False) -> int:
    """Show versions, devices, and which implementation each optimizer uses on this machine.

    Args:
      json: Print JSON instead of tables.
    """
    from optax_lamblion.cli import _info

    return _info.run(json)


@app.command(sort_key=COMMANDS.index("bench"))
def bench(options: BenchOptions | None = None) -> int:
    """Time one optimizer step against Optax's own."""
    from optax_lamblion.cli import _bench

    return _bench.run(options or BenchOptions())


app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def _with_config(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(metavar="FILE")] = None,
) -> int:
    """Runs a command.

    Args:
      words: The command line.
      config: Read options from this TOML file, which has a table for each command. Options on the
        command line win.
    """
    if not words:
        app.help_print(console=_Console(stderr=True))
        return 2
    app.config = () if config is None else (_read_config(config),)
    return app(words, console=_Console())


def run(arguments: Sequence[str]) -> int:
    """Runs a command line and returns its exit status; raises `CommandError` if it is wrong."""
    try:
        return app.meta(arguments, console=_Console()) or 0
    except UnusedCliTokensError as error:
        word = (error.unused_tokens or [""])[0]
        raise CommandError(
            f'there is no place for the argument "{word}".{_see(arguments)}'
        ) from None
    except CycloptsError as error:
        raise CommandError(f"{error}{_see(arguments)}") from None


def _see(arguments: Sequence[str]) -> str:
    command = next((f"{word} " for word in arguments if word in COMMANDS), "")
    return f' Type "optax-lamblion {command}--help" for all options.'


def _read_config(path: Path) -> Dict:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(
            f"cannot read the file of `--config`, {str(path)!r}: {error.strerror or error}."
        ) from error
    except ValueError as error:
        raise CommandError(f"{str(path)!r} of `--config` is not TOML: {error}.") from error
    for name in tables.keys() - set(COMMANDS):
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean [{near[0]}]? " if near else ""
        raise CommandError(
            f"{str(path)!r} has an unknown key {name!r}. {hint}"
            f"Options belong to the table of a command: {', '.join(f'[{x}]' for x in COMMANDS)}."
        )
    return Dict(tables, source=str(path))
