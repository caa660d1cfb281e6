"""Steps and quantization as Pallas kernels on the Mosaic GPU backend, for NVIDIA GPUs."""
