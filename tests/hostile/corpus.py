"""Files and command lines that mean no good, each decided by a number: `case(seed)`.

They begin as a small checkpoint that is right, and then a part of it is cut off, swapped, repeated,
nested or becomes something else, before or after it is put into a file. `python -m
tests.hostile.corpus FOLDER [COUNT]` writes them to look at.
"""

import io
import json
import pathlib
import pickle
import random
import struct
import sys
import zipfile
from typing import NamedTuple

import numpy as np

from tests.interop import loading

ESCAPE = "\x1b]0;gotcha\x07\x1b[2J"
"""What sets the title of a terminal and clears it."""


class Case(NamedTuple):
    """A command line of `convert`, and the files that it finds: by path, in an empty folder."""

    kind: str
    files: dict[str, bytes]
    words: list[str]


def case(seed):
    """The case of a seed."""
    rng = random.Random(seed)
    kind = rng.choice([_torn, _zipped, _pickled, _headed, _settings, _typed])
    return Case(kind.__name__.strip("_"), *kind(rng))


def write(case, folder):
    """Puts the files of a case into a folder."""
    for name, content in case.files.items():
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ------------------------------------------------------------------------------------- kinds


def _torn(rng):
    """The bytes of a file, without regard to what they mean."""
    suffix = rng.choice(["pt", "safetensors"])
    content = pt(_checkpoint(rng)) if suffix == "pt" else safetensors(_checkpoint(rng))
    return {f"x.{suffix}": _damaged(rng, content)}, [f"x.{suffix}", *_target(rng)]


def _zipped(rng):
    """The pickle of an archive or a length in it, with checksums that are right again."""
    pickled, parts = _pickle(_checkpoint(rng))
    if rng.random() < 0.8:
        pickled = _damaged(rng, pickled)
    else:
        key = rng.choice(list(parts))
        parts[key] = _damaged(rng, parts[key])
    return {"x.pt": archive(pickled, parts)}, ["x.pt", *_target(rng)]


def _pickled(rng):
    """A tree with something in it that does not belong there, in any protocol."""
    tree = _spoilt(rng, _checkpoint(rng))
    return {"x.pt": pt(tree, rng.choice([2, 2, 4]))}, ["x.pt", *_target(rng)]


def _headed(rng):
    """The header of a `.safetensors` file."""
    content = safetensors(_checkpoint(rng))
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([x for x in header if x != "__metadata__"])
    entry = header[name]
    what = rng.choice(["dtype", "shape", "data_offsets", "name", "twice", "gone"])
    if what == "dtype":
        entry["dtype"] = rng.choice(
            ["F64", "F16", "BF16", "F8_E5M2", "I64", "BOOL", "U8", "I8", "I32", "U32", "X1", 3]
        )
    elif what in ("shape", "data_offsets"):
        entry[what] = rng.choice(
            [[], [0], [-1], [2**62, 2**62], [2**63, 0], [1] * 70, None, "a", [0, 2**40], [5, 3]]
        )
    else:
        if what != "gone":
            header[rng.choice(NAMES)] = dict(entry)
        if what != "twice":
            del header[name]
    made = json.dumps(header).encode()
    return {"x.safetensors": struct.pack("<Q", len(made)) + made + data}, [
        "x.safetensors",
        *_target(rng),
    ]


def _settings(rng):
    """The settings of a `.safetensors` file, which are JSON."""
    tree = _checkpoint(rng)
    depth = rng.choice([10, 900, 50_000])
    text = rng.choice(
        [
            lambda: "[" * depth + "]" * depth,
            lambda: '[{"lr": ' + "[" * depth + "]" * depth + ', "params": [0, 1]}]',
            lambda: '[{"lr": 1' + "0" * rng.choice([400, 5000]) + ', "params": [0, 1]}]',
            lambda: _damaged(rng, json.dumps(tree["param_groups"]).encode()).decode("latin1"),
            lambda: json.dumps(_spoilt(rng, tree["param_groups"], _PLAIN), default=str),
            lambda: '[{"lr": NaN, "params": [0, 1], "note": "\\u001b[2J"}]',
        ]
    )()
    return {"x.safetensors": safetensors(tree, text)}, ["x.safetensors", *_target(rng)]


def _typed(rng):
    """What is typed, and the file of names."""
    name = rng.choice(["x.safetensors", "x.pt"])
    content = (pt if name == "x.pt" else safetensors)(_checkpoint(rng))
    names = rng.choice(
        [
            lambda: "\n".join(rng.choices(NAMES, k=rng.choice([1, 2, 3]))).encode(
                "utf-8", "surrogatepass"
            ),
            lambda: json.dumps(rng.choices(NAMES, k=2)).encode(),
            lambda: b"[" * rng.choice([3, 50_000]),
            lambda: json.dumps([rng.choice(ODD) for _ in range(2)], default=str).encode(),
            lambda: bytes(rng.randrange(256) for _ in range(50)),
        ]
    )()
    options = {
        "--key": NAMES,
        "--order": ["storage", "logical", "C"],
        "--optimizer": ["lion", "lamb", "adamw", "sgd"],
        "--bits": ["8", "32", "9", "x"],
        "--codec": ["power", "dynamic", "y"],
        "--block-size": ["0", "-1", "64", "256", "1e3", str(10**30)],
        "--transpose": ["*", "[", "**/[!", ESCAPE],
    }
    words = [rng.choice([name, ".", "missing.pt", "names", f"{ESCAPE}.pt", "a" * 300 + ".pt"])]
    words = [name] if rng.random() < 0.6 else words
    words += _target(rng)
    if rng.random() < 0.7:
        words += ["--names", "names"]
    for option in rng.sample(list(options), rng.choice([0, 0, 1, 2])):
        words.append(f"{option}={rng.choice(options[option])}")
    return {name: content, "names": names}, words


def folder_case(seed, orbax):
    """The case of a seed where an Orbax checkpoint of a Lion is damaged.

    Its files come by their path. It has the parameters "w" and "b".
    """
    rng = random.Random(seed)
    files = {f"state/{name}": content for name, content in orbax.items()}
    for name in rng.sample(sorted(files), rng.choice([0, 1, 1, 1, 2])):
        if rng.random() < 0.3:
            del files[name]
        else:
            files[name] = _damaged(rng, files[name])
    files["names"] = "\n".join(
        ["w", "b"] if rng.random() < 0.8 else rng.choices(NAMES, k=2)
    ).encode("utf-8", "surrogatepass")
    return Case("folder", files, ["state", "out.safetensors", "--names", "names"])


# -------------------------------------------------------------------------------- ingredients

NAMES = [
    "", "a", "a/b", "a/b/c", "/", "//", "..", "../../x", ".", "a\x00b", ESCAPE, "\u202eabc", "0",
    "n" * 5000, "state.0.state1", "state", "state.0", "state.0.__bnb_optimizer_quant_state__",
    "state.99.step", "__metadata__", "\ud800", "layout", "mu", "hyperparams/x",
]  # fmt: skip

ODD = [
    None, True, -7, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), -float("inf"), "",
    ESCAPE, "x" * 5000, b"\x00\xff", [], {}, (), [[]], {"a": {"b": 1}}, [0, 1], 1e300,
]  # fmt: skip


def _checkpoint(rng):
    """A checkpoint that is right: of two parameters, in 8 bits and in 32."""
    source = loading.read(rng.choice(["lion8bit_flat", "lamb32bit", "lion32bit"]))
    numbers = list(source["state"])[:2]
    group = dict(source["param_groups"][0], params=numbers)
    return {"state": {n: source["state"][n] for n in numbers}, "param_groups": [group]}


def _target(rng):
    # Orbax takes its time, so there are fewer folders.
    return rng.choice([[], [], ["out.safetensors"], ["out.safetensors"], ["--json"], ["out"]])


def _damaged(rng, content):
    """Bytes cut short, flipped, swapped, repeated, or overwritten by a number that is too large."""
    content, n = bytearray(content), len(content)
    at, length = rng.randrange(n + 1), rng.choice([1, 2, 4, 8, 64])
    how = rng.choice(["cut", "flip", "flip", "zero", "ones", "twice", "out", "swap", "text"])
    if how == "cut":
        del content[at:]
    elif how == "flip":
        for _ in range(rng.choice([1, 1, 3, 30])):
            if n:
                content[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif how in ("zero", "ones"):
        content[at : at + length] = (b"\0" if how == "zero" else b"\xff") * length
    elif how == "twice":
        content[at:at] = content[at : at + length] * rng.choice([1, 100])
    elif how == "out":
        del content[at : at + length]
    elif how == "swap":
        other = rng.randrange(n + 1)
        content[at : at + length], content[other : other + length] = (
            content[other : other + length],
            content[at : at + length],
        )
    else:
        content[at:at] = ESCAPE.encode()
    return bytes(content)


_PLAIN = (
    lambda rng: rng.choice(ODD),
    lambda rng: _nested(rng.choice([40, 900]), 1),
)
_ANY = (
    *_PLAIN,
    lambda rng: _nested(rng.choice([40, 900]), rng.choice([2, 10])),
    lambda rng: np.zeros(rng.choice([(), (0,), (3,), (2, 3, 4)]), rng.choice(["f4", "u1", "i8"])),
    lambda rng: Call("os", "system", ("exit 1",)),
    lambda rng: Call("torch._utils", "_rebuild_tensor_v2", (1, 2, 3)),
    lambda rng: _overlong(rng),
)


def _spoilt(rng, tree, kinds=_ANY):
    """A tree with something in place of a part of it, at any depth, or with one part more."""
    odd = rng.choice(kinds)(rng)

    def spoil(node):
        children = isinstance(node, dict | list | tuple) and len(node)
        if not children or rng.random() < 0.2:
            return odd
        pairs = list(node.items() if isinstance(node, dict) else enumerate(node))
        i = rng.randrange(len(pairs))
        key, value = pairs[i]
        what = rng.random()
        if what < 0.7:
            pairs[i] = key, spoil(value)
        elif what < 0.8:
            del pairs[i]
        elif what < 0.9:
            pairs.append((rng.choice(NAMES), odd))
        else:
            pairs[i] = rng.choice(NAMES), value
        return dict(pairs) if isinstance(node, dict) else [x for _, x in pairs]

    return spoil(tree)


def _nested(depth, width):
    """Lists in lists; if `width` is more than 1, more than can be counted."""
    node = []
    for _ in range(depth):
        node = [node] * width
    return node


def _overlong(rng):
    """A tensor that says it has more numbers than there are."""
    shape, strides = rng.choice(
        [
            ((10**12,), (0,)),
            ((2**40, 2**40), (1, 1)),
            ((3,), (2**62,)),
            ((-1,), (1,)),
            ((4,), (-1,)),
        ]
    )
    return Tensor(np.ones(4, np.float32), shape, strides, rng.choice([0, 0, 3, 2**70, -1]))


# -------------------------------------------------------------------- writing, without PyTorch


class Call(NamedTuple):
    """What is to be called when a pickle is loaded."""

    module: str
    name: str
    arguments: tuple


class Tensor(NamedTuple):
    """A tensor with extents that need not be true."""

    numbers: np.ndarray
    shape: tuple
    strides: tuple
    offset: int


class Global(NamedTuple):
    """A name in a pickle."""

    module: str
    name: str


class _Pickler(pickle._Pickler):  # in Python, which can write names that are not here
    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol, parts):
        super().__init__(file, protocol)
        self.parts = parts

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(Global(obj.module, obj.name))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, np.ndarray):
            strides = tuple(stride // obj.itemsize for stride in obj.strides)
            self.save(Tensor(obj, obj.shape, strides, 0))
        elif isinstance(obj, Tensor):
            key = str(len(self.parts))
            self.parts[key] = obj.numbers.tobytes()
            self.save(Global("torch._utils", "_rebuild_tensor_v2"))
            kind = {"f": "Float", "u": "Byte", "i": "Long"}[obj.numbers.dtype.kind] + "Storage"
            self.write(pickle.MARK + pickle.MARK)
            for x in ("storage", Global("torch", kind), key, "cpu", obj.numbers.size):
                self.save(x)
            self.write(pickle.TUPLE + pickle.BINPERSID)
            for x in (
                obj.offset,
                obj.shape,
                obj.strides,
                False,
                Call("collections", "OrderedDict", ()),
            ):
                self.save(x)
            self.write(pickle.TUPLE + pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def _pickle(tree, protocol=2):
    """A pickle as PyTorch writes it, and the numbers of its tensors by their key."""
    file, parts = io.BytesIO(), {}
    _Pickler(file, protocol, parts).dump(tree)
    return file.getvalue(), parts


def pt(tree, protocol=2):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return archive(*_pickle(tree, protocol))
    finally:
        sys.setrecursionlimit(limit)


def archive(pickled, parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {
            "data.pkl": pickled,
            **{f"data/{k}": x for k, x in parts.items()},
        }.items():
            archive.writestr(zipfile.ZipInfo(f"x/{name}"), content)
    return file.getvalue()


_SAFETENSORS = {"float32": "F32", "uint8": "U8", "int64": "I64"}


def safetensors(tree, settings=None):
    header, data = {}, b""

    def put(node, name):
        nonlocal data
        if isinstance(node, dict):
            for key, value in node.items():
                put(value, f"{name}.{key}")
            return
        array = np.asarray(node)
        header[name] = {
            "dtype": _SAFETENSORS[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()

    put(tree["state"], "state")
    text = json.dumps(tree["param_groups"]) if settings is None else settings
    made = json.dumps({"__metadata__": {"param_groups": text}, **header}).encode()
    return struct.pack("<Q", len(made)) + made + data


if __name__ == "__main__":
    for seed in range(int(sys.argv[2]) if len(sys.argv) > 2 else 1000):
        write(case(seed), pathlib.Path(sys.argv[1], f"{seed:04}"))
