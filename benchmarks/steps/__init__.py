"""The time of one optimizer step, ours, Optax's and others', on lists of shapes.

    ./dev bench --help; ./dev peers --version         # make both environments
    uv pip install --python .venv/bin/python --group benchmarks
    .venv/bin/python -m benchmarks.steps

`optax-lamblion bench` is the short form of it, without the others.
"""
