"""The kernels as a compiler made them (PTX), executed on a CPU and judged.

`launching.emulated` lets `pallas_kernels` run so: a kernel is compiled for a GPU that is not there,
and its PTX is run thread by thread. What is around it is XLA's, for the CPU.
"""
