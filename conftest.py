"""Names that the examples in docstrings use without importing them."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_lamblion
import pallas_kernels


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace):
    doctest_namespace.update(jax=jax, jnp=jnp, optax=optax)
    for package in (optax_lamblion, pallas_kernels):
        doctest_namespace.update({name: getattr(package, name) for name in package.__all__})
