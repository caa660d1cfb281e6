"""Flax's optimizers with another step; `optax_lamblion.flax` is the door."""
