"""Keras's own `fit`, on JAX, with the optimizer of docs/integrations.md that wraps Optax's."""

import numpy as np
import optax

from tests.loops import judge
from tests.test_docs import DOCS, FENCE, read


def recipe(name):
    """A class of the page. Its block imports what it needs, so it runs by itself."""
    (block,) = (
        x[3] for x in FENCE.finditer(read(DOCS / "integrations.md")) if f"class {name}(" in x[3]
    )
    names = {"__name__": "docs.integrations"}
    exec(compile(block, f"integrations.md: {name}", "exec"), names)
    return names[name]


def test_fit():
    OptaxOptimizer = recipe("OptaxOptimizer")  # which chooses JAX, so Keras comes after it
    import keras

    x, y = map(np.asarray, judge.data(examples=48))

    def arrays(variables):
        return [np.array(v.value) for v in variables]

    def loop(make):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(4)])
        optimizer = OptaxOptimizer(optax.chain(optax.clip_by_global_norm(1.0), make(1e-2)))
        model.compile(optimizer=optimizer, loss="mse")
        optimizer.build(model.trainable_variables)
        start, before = arrays(model.weights), arrays(optimizer.leaves)
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False)
        assert int(optimizer.iterations) == 3
        return judge.Run(start, arrays(model.weights), (before, arrays(optimizer.leaves)))

    judge.compare(loop, judge.ADAMW)
