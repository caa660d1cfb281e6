"""Bytes to learn from: the Python standard library's own sources, or a file of the user's.

A `Corpus` is two byte strings, one to train on and one held out, and the windows cut from them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sysconfig
import zlib
from pathlib import Path

import numpy as np

# Tests repeat themselves, and the other three are tables and prose that were generated.
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "__pycache__", "encodings", "pydoc_data"}
)
_SKIPPED_PREFIXES = ("config-", "lib2to3", "_sysconfigdata")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text as bytes, in two parts that share none of it.

    - `train` and `held_out` are one-dimensional `uint8` arrays.
    - `source` says in words where they come from.
    """

    train: np.ndarray
    held_out: np.ndarray
    source: str

    def train_windows(self, seed: int, step: int, count: int, length: int) -> np.ndarray:
        """`count` random windows of `length + 1` bytes; the same for the same seed and step."""
        rng = np.random.default_rng((seed, step))
        starts = rng.integers(0, self.train.size - length, size=count)
        return _windows(self.train, starts, length)

    def held_out_windows(self, count: int, length: int) -> np.ndarray:
        """Up to `count` windows of `length + 1` bytes, evenly spaced over the held-out part."""
        count = min(count, (self.held_out.size - 1) // length)
        starts = np.linspace(0, self.held_out.size - length - 1, count).astype(np.int64)
        return _windows(self.held_out, starts, length)

    def unigram_loss(self, windows: np.ndarray) -> float:
        """Nats per byte, on the targets in `windows`, of a model that knows only byte frequencies.

        This is what a network reaches that ignores its context: the line to be below.
        """
        counts = np.bincount(self.train, minlength=256) + 1.0  # +1: no byte is impossible
        return float(-np.log(counts / counts.sum())[windows[:, 1:]].mean())


def python_sources() -> Corpus:
    """The sources of the running interpreter's standard library, split by file.

    One file in ten is held out, chosen by a checksum of its name, so the split does not depend on
    the file system's order and hardly on the Python version.
    """
    root = Path(sysconfig.get_path("stdlib"))
    train, held_out = [], []
    for path in sorted(_python_files(root), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix().encode()
        (held_out if zlib.crc32(name) % 10 == 0 else train).append(path.read_bytes())
    if not train or not held_out:
        raise ValueError(
            f"Found no Python sources in {root}: this interpreter ships without them. "
            "Train on a text of your own with `--text FILE`."
        )
    source = f"{len(train) + len(held_out)} files of the Python standard library"
    return Corpus(_join(train), _join(held_out), source)


def text_file(path: str | os.PathLike) -> Corpus:
    """A file of the user's, in any encoding: its last tenth is held out."""
    path = Path(path)
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(
            f"Cannot read the text {str(path)!r}: {error.strerror or error}. "
            "Give the path of a readable file, as in `--text book.txt`."
        ) from error
    cut = content.size - content.size // 10
    return Corpus(content[:cut], content[cut:], path.name)


def check_length(corpus: Corpus, seq_len: int) -> None:
    """Raises `ValueError` unless both parts hold at least one window of `seq_len + 1` bytes."""
    shortest = min(corpus.train.size, corpus.held_out.size)
    if shortest > seq_len:
        return
    total = corpus.train.size + corpus.held_out.size
    advice = f" or use `--seq-len {shortest - 1}` or less" if shortest > 1 else ""
    raise ValueError(
        f"The text ({corpus.source}) has {total:,} bytes, of which {corpus.held_out.size:,} are "
        f"held out; a sequence length of {seq_len} needs {seq_len + 1:,} there. "
        f"Give a text of at least {10 * (seq_len + 1):,} bytes{advice}."
    )


def bits_per_byte(nats: float) -> float:
    """A loss in nats per byte as bits per byte, which is how text compressors are compared."""
    return nats / math.log(2)


def _python_files(root: Path):
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in _SKIPPED_FOLDERS and not name.startswith(_SKIPPED_PREFIXES)
        ]
        yield from (
            Path(folder, name)
            for name in files
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES)
        )


def _join(parts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"\n".join(parts), np.uint8)


def _windows(content: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return content[starts[:, None] + np.arange(length + 1)].astype(np.int32)
