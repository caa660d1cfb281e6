"""A model of how fast the kernels are: of the machine code as assembled, on GPUs as documented.

    ./dev deviceless --collect-only    # makes the environment
    .venv-deviceless/bin/python -m tests.deviceless.throughput --help

What is read off the machine code is a fact of the compiled program. What is made of it here is
modelled, and nothing of the model was checked on a GPU: it ranks variants of a kernel, and says
what keeps one from the time of its bytes. `gpus` and `pipes` have what it assumes, `simulator`
what it leaves out, and `model` puts them together.
"""
