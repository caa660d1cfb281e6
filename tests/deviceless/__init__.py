"""Programs for NVIDIA GPUs, compiled and read on a machine without one: `./dev deviceless`."""
