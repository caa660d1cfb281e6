"""In which order the numbers of a tensor are taken, and what counts as a tensor."""

import numpy as np
import pytest
import torch

from tests.interop import cuda_steps, problem
from tests.peers.library import CHECKPOINTS, arrays, files

GROUPS = [{"lr": 1.0, "params": [3]}]


def dense(shape, axes):
    """A tensor with its axes permuted, whose numbers lie in memory as 0, 1, 2, ..."""
    return torch.arange(int(np.prod(shape))).reshape(shape).permute(axes)


def checkpoint(slot, key=arrays.QUANT_STATE):
    slots = {"state1": slot}
    return {"state": {3: {"step": 1, key: slots} if key else slots}, "param_groups": GROUPS}


def slot_of(checkpoint, key=arrays.QUANT_STATE):
    slots = checkpoint["state"][3]
    return slots[key]["state1"] if key else slots["state1"]


DENSE = {
    "matrix": dense((3, 4), (1, 0)),
    "channels_last": dense((2, 5, 6, 3), (0, 3, 1, 2)),
    "with_axes_of_one": dense((1, 3, 1, 4), (3, 2, 1, 0)),
    "part_of_more": torch.arange(-17, 83)[17:29].reshape(3, 4).t(),
}


@pytest.mark.parametrize("tensor", DENSE.values(), ids=DENSE)
def test_storage_order_is_the_order_in_memory(tensor):
    result = arrays.as_array(tensor)
    assert result.shape == tuple(tensor.shape)
    np.testing.assert_array_equal(result.ravel(), np.arange(tensor.numel()))
    assert not np.array_equal(result, arrays.as_array(tensor, order="logical"))


@pytest.mark.parametrize("tensor", DENSE.values(), ids=DENSE)
def test_logical_order_is_that_of_the_index(tensor):
    result = arrays.as_array(tensor, order="logical")
    assert all(result[index] == value for index, value in np.ndenumerate(np.array(tensor.tolist())))


@pytest.mark.parametrize("order", arrays.ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_orders_of_a_contiguous_tensor_agree_without_a_copy(dtype, order):
    tensor = torch.arange(12).to(dtype).reshape(3, 4)
    result = arrays.as_array(tensor, order=order)
    np.testing.assert_array_equal(result.astype(int), np.arange(12).reshape(3, 4))
    assert result.ctypes.data == tensor.data_ptr()


def test_other_arrays_are_taken_by_their_index():
    array = np.asfortranarray(np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(arrays.as_array(array), np.arange(12).reshape(3, 4))


GAPS = {
    "strided": torch.arange(24).reshape(3, 8)[:, ::2],
    "expanded": torch.arange(4).expand(3, 4),
    "overlapping": torch.arange(10).as_strided((3, 4), (1, 1)),
    "cut": torch.arange(24).reshape(4, 6).t()[:3],
}


@pytest.mark.parametrize("tensor", GAPS.values(), ids=GAPS)
def test_tensors_with_gaps_have_no_storage_order(tensor):
    name = rf"`state\.3\.{arrays.QUANT_STATE}\.state1` has shape .* leave gaps in memory or overlap"
    with pytest.raises(ValueError, match=name):
        arrays.as_arrays(checkpoint(tensor), order="storage")
    by_index = slot_of(arrays.as_arrays(checkpoint(tensor), order="logical"))
    np.testing.assert_array_equal(by_index, np.array(tensor.tolist()))


def test_scales_with_gaps_are_named():
    slots = {"step": 1, "state1": torch.ones(3), "absmax1": torch.ones(6)[::2]}
    with pytest.raises(ValueError, match=r"`state\.3\.absmax1`"):
        arrays.as_arrays({"state": {3: slots}, "param_groups": GROUPS})


def truth(name):
    """Lion's momentum after the steps of the checkpoints, without 8 bits."""
    m = np.zeros(problem.SHAPES[name])
    for step in range(problem.STEPS):
        m = 0.99 * m + (1 - 0.99) * problem.gradient(name, step)
    return m


@pytest.mark.parametrize("file", ["lion8bit", "lion8bit_gpu_order"])
def test_8bit_slots_tell_their_order_by_their_scales(file):
    """One is from the CPU build, the other as from a GPU; both have the same strides."""
    path, number = CHECKPOINTS / f"{file}.pt", 3 if file == "lion8bit" else 0
    read = {order: files.read(path, order=order) for order in (None, *arrays.ORDERS)}
    m = {order: cuda_steps.decode(x["state"][number], (96, 64)).m for order, x in read.items()}
    right = "logical" if file == "lion8bit" else "storage"
    wrong = "storage" if file == "lion8bit" else "logical"
    np.testing.assert_array_equal(m[None], m[right])
    # 0.007 of the scale per step; the wrong order is somebody else's momentum.
    assert np.corrcoef(m[right].ravel(), truth("transposed").ravel())[0, 1] > 0.999
    assert abs(np.corrcoef(m[wrong].ravel(), truth("transposed").ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("order", arrays.ORDERS)
@pytest.mark.parametrize("shape", [(64, 96), (128, 33), (8, 24, 24)])
def test_any_8bit_slot_tells_its_order(shape, order):
    """Momentum of log-normal scales, its codes put into a transposed tensor in either order."""
    rng = np.random.default_rng(0)
    m = rng.normal(size=shape) * np.exp(rng.normal(size=shape))
    levels = np.linspace(-1, 1, 256)
    stored = cuda_steps.quantize(m, levels, 256, signed=False)
    slot = torch.empty(shape[::-1], dtype=torch.uint8).permute(*range(len(shape))[::-1])
    if order == "logical":
        slot.copy_(torch.from_numpy(stored.codes))
    else:
        slot.as_strided((m.size,), (1,)).copy_(torch.from_numpy(stored.codes.ravel()))
    slots = {"state1": slot, "absmax1": torch.from_numpy(stored.absmax)}
    state = {3: {"step": 1, arrays.QUANT_STATE: slots}}
    result = arrays.as_arrays({"state": state, "param_groups": GROUPS})
    np.testing.assert_array_equal(slot_of(result), stored.codes)


def test_a_32bit_slot_goes_with_the_8bit_ones():
    """`lion8bit.pt` is in logical order; the slot beside its own has nothing to tell it by."""
    content = torch.load(CHECKPOINTS / "lion8bit.pt", weights_only=True)
    content["state"][9] = {"step": 1, arrays.QUANT_STATE: {"state1": DENSE["matrix"]}}
    slots = arrays.as_arrays(content)["state"][9][arrays.QUANT_STATE]
    np.testing.assert_array_equal(slots["state1"], DENSE["matrix"].tolist())


def test_a_32bit_slot_that_does_not_tell_has_to_be_asked_for():
    message = (
        r"`state\.3\.state1` has shape \(4, 3\), strides \(1, 4\), .* Pass `order='storage'` or"
    )
    with pytest.raises(ValueError, match=message):
        arrays.as_arrays(checkpoint(DENSE["matrix"]))


def test_before_there_was_a_cpu_build_slots_are_in_storage_order():
    """That is, before they were nested."""
    result = arrays.as_arrays(checkpoint(DENSE["matrix"], key=None))
    np.testing.assert_array_equal(slot_of(result, key=None).ravel(), np.arange(12))


def test_files_that_were_saved_on_a_gpu_are_in_storage_order(tmp_path, monkeypatch):
    """As PyTorch notes the device in the file; there is none here, so the note is forged."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(checkpoint(DENSE["matrix"]), tmp_path / "x.pt")
    monkeypatch.undo()
    np.testing.assert_array_equal(slot_of(files.read(tmp_path / "x.pt")).ravel(), np.arange(12))


UNUSUAL = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(3, device="meta"),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL)
def test_tensors_that_no_slot_can_be_are_named(make):
    with pytest.raises(ValueError, match=r"`state\.3\.\w+\.state1` (is not|has dtype)"):
        arrays.as_arrays(checkpoint(make()), order="storage")


def test_a_tensor_that_is_divided_over_devices_is_to_be_gathered():
    class Divided(torch.Tensor):
        def full_tensor(self):
            return self

    with pytest.raises(ValueError, match=r"Gather it with `full_tensor\(\)` first"):
        arrays.as_arrays(checkpoint(torch.ones(3).as_subclass(Divided)))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [(3, ValueError, r"Pass what `optimizer.state_dict\(\)` returned"),
     ({"state": {}}, ValueError, r"Pass what `optimizer.state_dict\(\)` returned"),
     ({"state": {torch.ones(1): {}}, "param_groups": []}, TypeError, "not `optimizer.state`"),
     ({"state": {0: torch.ones(1)}, "param_groups": []}, TypeError, "got int and Tensor")],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        arrays.as_arrays(wrong)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="'storage', 'logical' or None, got 'C'"):
        arrays.as_arrays(checkpoint(torch.ones(3)), order="C")


def test_tensors_do_not_share_memory_that_must_not_be_written():
    frozen = np.ones(3)
    frozen.flags.writeable = False
    slot_of(arrays.as_tensors(checkpoint(frozen))).add_(1)
    np.testing.assert_array_equal(frozen, 1)
