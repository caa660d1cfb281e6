"""Steps and quantization in plain `jax.numpy`: for every device, and the reference for kernels."""
