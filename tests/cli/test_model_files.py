"""The model of `memory --model`: what files say of it, and files that mean no good."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from optax_lamblion.cli import _models
from optax_lamblion.cli._errors import CommandError
from optax_lamblion.cli._safetensors import Tensor, read_header
from optax_lamblion.demo import shapes

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
TENSORS = {
    "a": np.zeros((3, 5), np.float32),
    "b": np.zeros(7, np.float16),
    "c": np.array(1, np.float32),
}


def write_config(path, **more):
    path.write_text(json.dumps(CONFIG | more))
    return path


def write_header(path, header, data=b""):
    """A file with this header, which may be text or what JSON is made of."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape=(2, 3), dtype="F32", at=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


def sizes(path):
    return {name: shape for name, shape in _models.find(str(path)).shapes.items()}


# --- What they say -------------------------------------------------------------------------------


def test_a_header_has_what_the_library_wrote(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "np"})
    found = read_header(tmp_path / "x.safetensors")
    assert found == {"a": Tensor("F32", (3, 5)), "b": Tensor("F16", (7,)), "c": Tensor("F32", ())}


def test_the_header_is_enough(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    assert sizes(path) == {"a": (3, 5), "b": (7,), "c": ()}


def test_no_data_are_read(tmp_path):
    """A file of which the data would be 4 TB; it is sparse."""
    path = write_header(tmp_path / "x.safetensors", {"w": entry((2**20, 2**20), at=(0, 2**42))})
    with path.open("r+b") as file:
        file.truncate(2**42)
    assert sizes(path) == {"w": (2**20, 2**20)}


def test_a_config_is_counted_as_a_class(tmp_path):
    model = _models.find(str(write_config(tmp_path / "config.json")))
    assert shapes.count(model.shapes) == 100 * 64 * 2 + 64 + 2 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64)
    assert model.remarks == ["Counted as LlamaForCausalLM."]


def test_a_config_of_another_class_is_said_to_be_one(tmp_path):
    path = write_config(tmp_path / "config.json", architectures=["LlamaForTokenClassification"])
    (remark,) = _models.find(str(path)).remarks
    assert "Counted as LlamaForCausalLM" in remark
    assert "saved from LlamaForTokenClassification" in remark


def test_the_parts_of_a_model_are_read_by_their_index(tmp_path):
    names = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: TENSORS[name]}, tmp_path / file)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert sizes(index) == sizes(tmp_path) == {"a": (3, 5), "b": (7,)}


def test_a_folder_with_tensors_and_a_config_has_the_tensors(tmp_path):
    write_config(tmp_path / "config.json")
    assert len(sizes(tmp_path)) == 21
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert len(sizes(tmp_path)) == 3


def test_buffers_are_no_parameters(tmp_path):
    buffers = {
        "h.0.attn.bias": np.zeros((1, 1, 4, 4), np.float32),
        "h.0.attn.masked_bias": np.array(0, np.float32),
        "layers.0.rotary_emb.inv_freq": np.zeros(4, np.float32),
        "bn.running_mean": np.zeros(4, np.float32),
        "bn.running_var": np.zeros(4, np.float32),
        "bn.num_batches_tracked": np.array(0, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    parameters = {
        "h.0.attn.bias2": np.zeros(4, np.float32),
        "attention.bias": np.zeros(40, np.float32),
    }
    save_file(buffers | parameters, tmp_path / "x.safetensors")
    model = _models.find(str(tmp_path))
    assert model.shapes.keys() == parameters.keys()
    assert "7 more" in model.remarks[1]


# --- What they may not be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"w": entry(at=(0, 25))}, "takes 25 bytes"),
        ({"w": entry(at=(24, 0))}, "takes -24 bytes"),
        ({"w": entry(dtype="F31")}, "'F31'"),
        ({"w": entry(dtype=["F32"])}, "which the format does not have"),
        ({"w": entry(shape=(2.0, 3))}, "the shape"),
        ({"w": entry(shape=(True, 6))}, "the shape"),
        ({"w": entry(shape=(-2, -3))}, "the shape"),
        ({"w": entry(shape=(2**60,), at=(0, 2**62))}, "the shape"),
        ({"w": entry(shape=(1,) * 40 + (6,))}, "the shape"),
        ({"w": entry(at=(0,))}, "is at"),
        ({"w": entry(), "v": entry()}, "overlap"),
        ({"w": entry(), "v": entry(at=(23, 47))}, "overlap"),
        ({"w": entry(), "v": entry(at=(30, 54))}, "gap"),
        ({"w": entry(at=(1, 25))}, "gap"),
        ({"w": 1}, "no dtype, shape and place"),
        ({"w": entry() | {"more": 1}}, "no dtype, shape and place"),
        (b'{"w": 1, "w": 2}', "two entries of the same name"),
        (b'{"w": ' + b"[" * 100_000, "damaged"),
        (b'{"w": ' + b"1" * 10_000 + b"}", "damaged"),
        (b"[1]", "no whole header"),
        (b"{nonsense}", "damaged"),
        (b'{"\xff": 1}', "damaged"),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path, header, words):
    path = write_header(tmp_path / "x.safetensors", header)
    with pytest.raises(CommandError, match=words):
        _models.find(str(path))


@pytest.mark.parametrize("length", [2**25 + 1, 2**63, 2**64 - 1])
def test_long_headers_are_not_read(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CommandError, match=f"would have {length:,} bytes"):
        _models.find(str(path))


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 9) + b"{}"])
def test_files_that_end_too_soon_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CommandError, match="Download it again"):
        _models.find(str(path))


def test_more_parameters_than_there_can_be_are_refused(tmp_path):
    header = {f"w{i}": entry((2**52,), "F4", (i * 2**51, (i + 1) * 2**51)) for i in range(3)}
    path = write_header(tmp_path / "x.safetensors", header)
    with pytest.raises(CommandError, match="which no model has"):
        _models.find(str(path))


def test_quantized_checkpoints_are_refused(tmp_path):
    tensors = {"w": np.zeros((8, 8), np.uint8), "scales": np.zeros(8, np.float32)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CommandError, match=r"seems to be quantized. Give config.json"):
        _models.find(str(tmp_path))


def test_one_part_is_not_a_model(tmp_path):
    save_file(TENSORS, tmp_path / "m-00001-of-00003.safetensors")
    with pytest.raises(CommandError, match="one of 3 parts"):
        _models.find(str(tmp_path / "m-00001-of-00003.safetensors"))


def test_parts_of_which_one_is_missing_are_refused(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-00001-of-00001.safetensors"}}))
    with pytest.raises(CommandError, match="not there"):
        _models.find(str(tmp_path))


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "x.pt"])
def test_an_index_names_files_beside_it(tmp_path, name):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CommandError, match="no .safetensors file beside it"):
        _models.find(str(index))


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_has_names(tmp_path, content):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps(content))
    with pytest.raises(CommandError, match="`weight_map`"):
        _models.find(str(index))


def test_tensors_are_not_in_two_parts(tmp_path):
    names = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    for file in names.values():
        save_file({"a": TENSORS["a"]}, tmp_path / file)
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CommandError, match="another part"):
        _models.find(str(tmp_path))


def test_a_folder_with_two_models_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors")
    save_file(TENSORS, tmp_path / "two.safetensors")
    with pytest.raises(CommandError, match=r"one.safetensors, two.safetensors.*one of them"):
        _models.find(str(tmp_path))


def test_an_unknown_kind_is_told_other_ways(tmp_path):
    path = write_config(tmp_path / "config.json", model_type="mamba")
    with pytest.raises(CommandError, match=r"'mamba'.*llama.*\.safetensors.*--params"):
        _models.find(str(path))


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "[" * 100_000, "\0"])
def test_what_is_no_config_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CommandError, match="JSON"):
        _models.find(str(path))


def test_a_long_config_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CommandError, match="too large"):
        _models.find(str(path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.safetensors", "no file"),
        ("no/such", "no file"),
        ("model.pt", "neither a config.json nor"),
        ("folder", "no config.json and no .safetensors"),
    ],
)
def test_other_paths_are_refused(tmp_path, name, words):
    (tmp_path / "model.pt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(CommandError, match=words):
        _models.find(str(tmp_path / name))
