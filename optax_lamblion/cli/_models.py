"""The model that `memory` is asked about: a known name, a Hugging Face config, or safetensors.

Only shapes are read: of a config its fields, of a `.safetensors` file its header.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optax_lamblion.cli import _safetensors
from optax_lamblion.cli._errors import CommandError, input_errors
from optax_lamblion.demo import configs, shapes
from optax_lamblion.demo.optimizers import did_you_mean

_LARGEST_JSON = 2**25  # bytes: the index of a few hundred thousand tensors
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(.*)-\d+-of-(\d+)\.safetensors")
# Tensors that checkpoints keep beside parameters, and nobody trains.
_BUFFERS = re.compile(
    r"(\.inv_freq|\.running_(mean|var)|\.masked_bias|_scale(_inv)?|\.(attn|attention)\.bias)$"
)
_MOST = 2**53  # parameters


@dataclasses.dataclass(frozen=True)
class Model:
    """The shapes of a model's parameters.

    - `name`: what to call it.
    - `remarks`: what a reader of its size should know about where it comes from.
    """

    name: str
    shapes: shapes.Shapes
    remarks: Sequence[str] = ()


def find(given: str) -> Model:
    """The model of a name or a path."""
    if given in shapes.MODELS:
        return Model(given, shapes.MODELS[given]())
    path = pathlib.Path(given)
    if not path.exists() and not path.suffix and path.name == given:
        raise CommandError(
            f"Unknown model {given!r}. {did_you_mean(given, shapes.MODELS)}Choose from "
            f"{', '.join(shapes.MODELS)}; or give the path of a Hugging Face config.json, of a "
            ".safetensors file or of a folder with one of them, or a number of parameters with "
            "`--params`."
        )
    with input_errors():
        model = _read(path)
    if not 1 <= shapes.count(model.shapes) <= _MOST:
        raise CommandError(
            f"{given!r} describes {shapes.count(model.shapes):,} parameters, which no model has. "
            "Check the file, or give a number with `--params`."
        )
    return model


def _read(path: pathlib.Path) -> Model:
    if path.is_dir():
        return _read(_file_in(path))
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'.")
    if path.name.endswith(_INDEX):
        return _from_headers(str(path), _shards(path))
    if path.suffix == ".safetensors":
        if part := _SHARD.fullmatch(path.name):
            raise ValueError(
                f"'{path}' is one of {int(part[2])} parts of a model. Give the folder that has all "
                "of them."
            )
        return _from_headers(str(path), [path])
    if path.suffix == ".json":
        return _from_config(path)
    raise ValueError(
        f"'{path}' is neither a config.json nor a .safetensors file. Give one of them, the folder "
        "that has it, or a number of parameters with `--params`."
    )


def _file_in(folder: pathlib.Path) -> pathlib.Path:
    """The file that says most about the model in a folder."""
    for pattern in (f"*{_INDEX}", "*.safetensors", "config.json"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"'{folder}' has {len(found)} files that could be the model: "
                f"{', '.join(x.name for x in found[:5])}{' ...' if len(found) > 5 else ''}. Give "
                "the path of one of them"
                + (", or of config.json." if (folder / "config.json").is_file() else ".")
            )
        if found:
            return found[0]
    raise ValueError(f"'{folder}' has no config.json and no .safetensors file.")


def _from_config(path: pathlib.Path) -> Model:
    config = _load_json(path)
    try:
        found = configs.model(config)
    except ValueError as error:
        raise ValueError(
            f"'{path}': {error} For any other model, give a .safetensors file, of which the header "
            "is read, or a number of parameters with `--params`."
        ) from error
    remarks = [f"Counted as {found.counted_as}."]
    saved = config.get("architectures")
    if isinstance(saved, list) and saved and saved[0] != found.counted_as:
        remarks = [f"Counted as {found.counted_as}; the config was saved from {saved[0]}."]
    return Model(str(path), found.shapes, remarks)


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names, which are beside it."""
    places = _load_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise ValueError(f"'{index}' is no index: it has no `weight_map` of names of files.")
    paths = []
    for name in sorted(set(places.values())):
        if pathlib.PurePath(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"'{index}' names {name!r}, which is no .safetensors file beside it.")
        if not (path := index.with_name(name)).is_file():
            raise ValueError(
                f"'{index}' names {name!r}, which is not there. Download all parts (their first "
                "bytes will do), or give config.json."
            )
        paths.append(path)
    return paths


def _from_headers(name: str, paths: Sequence[pathlib.Path]) -> Model:
    tensors: dict[str, _safetensors.Tensor] = {}
    for path in paths:
        header = _safetensors.read_header(path)
        if twice := tensors.keys() & header.keys():
            raise ValueError(f"'{path}' has {min(twice)!r}, as another part of the model does.")
        tensors |= header

    def elements(which: Callable[[str, str, tuple], bool]) -> dict[str, tuple[int, ...]]:
        return {key: x.shape for key, x in tensors.items() if which(key, x.dtype, x.shape)}

    found = elements(lambda key, dtype, shape: _is_float(dtype) and not _is_buffer(key, shape))
    found = {key: shape for key, shape in found.items() if shapes.count({key: shape})}
    rest = elements(lambda key, dtype, shape: not _is_float(dtype) and not _is_buffer(key, shape))
    if shapes.count(rest) > shapes.count(found) / 10:
        raise ValueError(
            f"'{name}' has {shapes.count(rest):,} integers and {shapes.count(found):,} floats: it "
            "seems to be quantized. Give config.json, or the model before it was quantized."
        )
    dtypes = Counter(x.dtype for key, x in tensors.items() if key in found)
    remarks = [f"{len(found):,} tensors, stored as {' and '.join(sorted(dtypes))}."]
    if left := len(tensors) - len(found):
        remarks.append(f"{left:,} more are buffers or empty, and not counted.")
    return Model(name, found, remarks)


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("F", "BF"))


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    found = _BUFFERS.search(name)
    # A mask of GPT-2 is called as the bias of an attention would be, and has four axes.
    return bool(found) and (not found[0].endswith(".bias") or len(shape) == 4)


def _load_json(path: pathlib.Path) -> Mapping[str, Any]:
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"'{path}' is too large for a config: {path.stat().st_size:,} bytes.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' is JSON, but no object with fields.")
    return found
