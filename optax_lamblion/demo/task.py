"""What a comparison needs to know about a learning problem, and nothing about optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

Params = Any
Batch = Any


@dataclasses.dataclass(frozen=True)
class Task:
    """A model at its starting point, with the data it learns from and the data it is judged by.

    - `params` is the common start. It is never modified: take a copy before donating it.
    - `batch(step)` depends on the step and the seed only, so every optimizer sees the same data.
    - `evaluate(params)` measures held-out data; its first entry is `"loss"`, in nats.
    - `baseline` holds the same entries for a predictor that ignores its input.
    - `sample(params)`, where there is one, returns a prompt and its continuation.
    """

    name: str
    title: str
    params: Params
    loss: Callable[[Params, Batch], jax.Array]
    batch: Callable[[int], Batch]
    evaluate: Callable[[Params], Mapping[str, float]]
    baseline_name: str
    baseline: Mapping[str, float]
    sample: Callable[[Params], tuple[str, str]] | None = None

    @property
    def parameter_count(self) -> int:
        """The number of parameters of the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))
