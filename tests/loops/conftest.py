"""Loops of other people run under JAX's own settings, not under the strict ones of these tests."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _settings_of_jax():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
