"""What every script asserts in the end."""

import jax
import numpy as np


def conclude(library, first, last, state):
    """Asserts that a loss fell and that moments are in 8 bits and in use, and says so."""
    codes = [x for x in jax.tree.leaves(state) if getattr(x, "dtype", None) == np.uint8]
    assert np.isfinite(last) and last < first, (first, last)
    assert codes and any(np.any(np.asarray(x)) for x in codes)
    elements = sum(x.size for x in codes)
    print(f"{library}: loss {first:.4g} to {last:.4g}, {elements:,} moments in 8 bits")
