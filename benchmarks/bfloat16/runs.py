"""What a record says of the trainings of an optimizer.

Losses are of held-out data and of all that a way knows of the parameters: in float32, or with what
compensation keeps beside bfloat16. Runs of one seed start alike and see the same batches, so what a
way costs is the difference from float32 of the same seed.
"""

import statistics

import numpy as np

FLOAT32 = "float32"
COMPENSATED = "bfloat16 compensated"
STOCHASTIC = "bfloat16 stochastic"
NEAREST = "bfloat16 nearest"
WAYS = (FLOAT32, COMPENSATED, STOCHASTIC, NEAREST)


class Runs:
    """The runs of one optimizer."""

    def __init__(self, runs):
        self.runs = runs
        self.rates = sorted({run["learning_rate"] for run in runs}, reverse=True)
        self.seeds = sorted({run["seed"] for run in runs})

    def of(self, way, rate):
        """The runs of a way at a learning rate, in the order of their seeds."""
        found = {
            run["seed"]: run
            for run in self.runs
            if (run["way"], run["learning_rate"]) == (way, rate)
        }
        return [found[seed] for seed in self.seeds]

    def losses(self, way, rate, *, in_16_bits=False):
        """The loss at the end, for each seed."""
        runs = self.of(way, rate)
        return np.array([run["loss_16bit"] if in_16_bits else run["loss"][-1] for run in runs])

    def excess(self, way, rate, **kwargs):
        """How much of it is more than with float32 parameters."""
        return self.losses(way, rate, **kwargs) - self.losses(FLOAT32, rate)

    def seed_noise(self, rate):
        """The standard deviation, over the seeds, of the loss with float32 parameters."""
        return statistics.stdev(self.losses(FLOAT32, rate))
