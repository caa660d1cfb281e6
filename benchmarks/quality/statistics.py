"""How far a way to store moments ends from float32, and how sure that is."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.quality.variants import FLOAT32

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean with its confidence interval, `mean - half` to `mean + half`."""

    mean: float
    half: float

    @property
    def holds_zero(self):
        """Whether zero is in it: no difference has been shown."""
        return abs(self.mean) <= self.half

    def __str__(self):
        return f"{self.mean:+.4f} ± {self.half:.4f}"


def interval(values):
    """The mean of a few values, which are taken as normal, by Student's t."""
    values = np.asarray(values, float)
    mean, error = values.mean(), stats.sem(values)
    return Interval(mean, error * stats.t.ppf((1 + CONFIDENCE) / 2, values.size - 1))


def excess(ways, name, at=-1):
    """What a way's held-out loss has over float32 of the same seed, for every seed."""
    return np.array(ways[name]["loss"][at]) - np.array(ways[FLOAT32.name]["loss"][at])
