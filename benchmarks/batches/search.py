"""The best learning rate: others are tried until there is a worse one on either side of it.

Then come those half-way to its neighbours. What is best of coarse steps depends on where they lie.
"""

import numpy as np

FACTOR = 3
"""Between one rate and the next."""
FIRST = (-1, 0, 1)
"""The powers of the factor that are always tried, as multiples of a family's usual rate."""
FURTHEST = 4
"""The largest power, either way: 81 times as much. A best rate there is at the edge."""


def mean(losses):
    """The mean loss over the seeds; a rate of which a training diverged has none."""
    return np.inf if None in losses else float(np.mean(losses))


def search(usual, measure):
    """The rates that were tried and their losses, by rising rates.

    Args:
      usual: The rate in the middle.
      measure: A function from a rate to the losses of its seeds.
    """

    def rate(power):
        return float(f"{usual * FACTOR**power:.6g}")

    found = {power: measure(rate(power)) for power in FIRST}
    while (power := _beyond(found)) is not None:
        found[power] = measure(rate(power))
    best = _best(found)
    for power in (best - 0.5, best + 0.5):
        if abs(power) < FURTHEST:
            found[power] = measure(rate(power))
    powers = sorted(found)
    return {"rates": [rate(x) for x in powers], "losses": [found[x] for x in powers]}


def _best(found):
    return min(sorted(found), key=lambda power: mean(found[power]))


def _beyond(found):
    """The power to be tried next, on the side where the best is; None if there is no need."""
    best = _best(found)
    if abs(best) == FURTHEST or min(found) < best < max(found):
        return None
    return best - 1 if best == min(found) else best + 1
