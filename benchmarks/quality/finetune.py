"""A real model, fine-tuned: Magika's, which tells types of files by their bytes.

Its package (Apache License 2.0) ships the weights as ONNX, of a network that was written in JAX.
Needed besides the library: `pip install magika onnx`. The network here is compared with the ONNX
file before it is trained.

What it learns is which of ten packages of Python's standard library some bytes are from, with a new
last layer. Its input of 2,048 bytes would take seconds a step, so it is cut to the first 128: of
the first norm, which has a scale for every four bytes, that leaves 32.
"""

import importlib.metadata
import pathlib
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality import tasks, training
from benchmarks.quality.variants import DEFAULT, FLOAT32, MOVED, RULES

PACKAGES = (
    "asyncio", "email", "http", "idlelib", "importlib", "logging", "multiprocessing", "tkinter",
    "unittest", "urllib",
)  # fmt: skip
LENGTH = 128
FACTOR = 0.1
"""Learning rates, as a share of those for training from scratch."""
_MODEL = "magika/models/standard_v3_3/model.onnx"
_NAMES = {
    "embed": {"kernel": "get_logits_/Const:0", "bias": "MagikaV2/Dense_0/Reshape:0"},
    "norm0": {"scale": "LayerNorm_0/Reshape_2:0", "bias": "LayerNorm_0/Reshape_3:0"},
    "conv": {"kernel": "Conv_0/transpose_3:0", "bias": "const_fold_opt__209"},
    "norm1": {"scale": "LayerNorm_1/Reshape_2:0", "bias": "LayerNorm_1/Reshape_3:0"},
    "head": {"kernel": "get_logits_/Const_24:0", "bias": "MagikaV2/Dense_1/Reshape:0"},
}


def measure(kept, steps=200):
    """Trainings of every rule in float32, from a start moved a little, and with 8-bit state."""
    task = make_task()
    results = {
        "title": "Magika's network on packages of Python's standard library",
        "parameters": task.parameters,
        "batch_size": task.batch_size,
        "steps": steps,
        "seeds": tasks.SEEDS,
        "rules": {},
    }
    for rule in RULES.values():
        rule = rule._replace(learning_rate=FACTOR * rule.learning_rate)
        results["rules"][rule.name] = {
            "learning_rate": rule.learning_rate,
            "ways": {
                way.name: kept(
                    f"finetune {rule.name} {way.name}",
                    lambda rule=rule, way=way: training.train(
                        task, rule, way, steps=steps, evaluations=5
                    ),
                )
                for way in (FLOAT32, MOVED, DEFAULT)
            },
        }
    return results


def make_task(batch_size=8, windows=256):
    """The task: the weights as shipped, but for the last layer and what is cut off."""
    whole = check(read_weights())
    train, held_out = sources()
    norm = {name: x[: LENGTH // 4] for name, x in whole["norm0"].items()}
    starts = []
    for seed in range(tasks.SEEDS):
        kernel = jax.random.normal(jax.random.key(seed), (512, len(PACKAGES))) / np.sqrt(512)
        head = {"kernel": kernel, "bias": jnp.zeros(len(PACKAGES))}
        starts.append({**whole, "norm0": norm, "head": head})

    def batch(data, key, size):
        parts, sizes = data
        which, where = jax.random.split(key)
        label = jax.random.randint(which, (size,), 0, len(PACKAGES))
        first = jax.random.randint(where, (size,), 0, sizes[label] - LENGTH)
        return parts[label[:, None], first[:, None] + jnp.arange(LENGTH)].astype(jnp.int32), label

    def loss(params, batch):
        found = logits(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(found, batch[1]).mean()

    return tasks.Task(
        name="finetune",
        title="Magika's network",
        batch_size=batch_size,
        params=tasks.stack(starts),
        data=_padded(train),
        held_out=batch(_padded(held_out), jax.random.key(99), windows),
        batch=batch,
        loss=loss,
    )


def sources():
    """The bytes of every package: four fifths to train on, and the rest."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    whole = [
        np.frombuffer(
            b"\n".join(x.read_bytes() for x in sorted((root / p).rglob("*.py"))), np.uint8
        )
        for p in PACKAGES
    ]
    return [x[: x.size * 4 // 5] for x in whole], [x[x.size * 4 // 5 :] for x in whole]


def _padded(parts):
    sizes = np.array([part.size for part in parts])
    rows = [np.pad(part, (0, sizes.max() - part.size)) for part in parts]
    return jnp.asarray(np.stack(rows)), jnp.asarray(sizes)


def logits(params, inputs):
    """The network: bytes as features, four at a time; a convolution; the maximum; a layer."""
    x = params["embed"]["kernel"][inputs] + params["embed"]["bias"]
    x = jax.nn.gelu(x, approximate=True)
    x = x.reshape(len(inputs), inputs.shape[1] // 4, 256)
    norm = params["norm0"]
    x = _normalized(x, 1) * norm["scale"][:, None] + norm["bias"][:, None]
    width = x.shape[1] - 4
    patches = jnp.concatenate([x[:, i : i + width] for i in range(5)], axis=-1)
    x = jax.nn.gelu(patches @ params["conv"]["kernel"] + params["conv"]["bias"], approximate=True)
    x = _normalized(x.max(1), 1) * params["norm1"]["scale"] + params["norm1"]["bias"]
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def _normalized(x, axis):
    mean = x.mean(axis, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean(axis, keepdims=True) + 1e-6)


def _path():
    """Where the weights are."""
    try:
        files = importlib.metadata.files("magika") or ()
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit("The fine-tuning needs `pip install magika onnx`.") from error
    return str(next(file for file in files if file.as_posix() == _MODEL).locate())


def read_weights():
    """The weights of the ONNX file by their names here."""
    import onnx  # pyright: ignore[reportMissingImports]

    graph = onnx.load(_path()).graph
    stored = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}

    def find(end):
        return next(jnp.asarray(x) for name, x in stored.items() if name.endswith(end))

    weights = {
        layer: {name: find(end) for name, end in names.items()} for layer, names in _NAMES.items()
    }
    # [outputs, inputs, 5, 1] as the matrix of a product with patches.
    kernel = weights["conv"]["kernel"][..., 0].transpose(2, 1, 0).reshape(5 * 256, 512)
    weights["conv"]["kernel"] = kernel
    for layer, name in (("norm0", "scale"), ("norm0", "bias"), ("conv", "bias")):
        weights[layer][name] = weights[layer][name].ravel()
    for layer in ("embed", "norm1", "head"):
        weights[layer]["bias"] = weights[layer]["bias"].ravel()
    weights["norm1"]["scale"] = weights["norm1"]["scale"].ravel()
    return weights


def check(weights):
    """The weights, if the network here answers as the ONNX file does."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    inputs = np.random.default_rng(0).integers(0, 257, (2, 2048), dtype=np.int32)
    (expected,) = onnxruntime.InferenceSession(_path()).run(None, {"bytes": inputs})
    np.testing.assert_allclose(
        jax.nn.softmax(logits(weights, jnp.asarray(inputs))), expected, rtol=1e-3, atol=1e-6
    )
    return weights
