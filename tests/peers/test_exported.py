"""Checkpoints that this library exported, in the optimizers of bitsandbytes.

`tests.interop.write_exported` writes them, of parameters of `problem`, where no two have one shape.
"""

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

from tests.interop import cuda_steps, problem
from tests.peers.library import EXPORTED, arrays, files

pytestmark = pytest.mark.skipif(
    not EXPORTED.is_dir(), reason="nothing has been exported to tests/interop/exported yet"
)
KINDS = {"lion8bit": bnb.optim.Lion8bit, "lion32bit": bnb.optim.Lion}


def loaded(name):
    """The checkpoint, a real optimizer that has loaded it, and its parameters."""
    checkpoint = files.read(EXPORTED / f"{name}.safetensors")
    start = {value.shape: value for value in problem.params().values()}
    params = []
    for number in sorted(checkpoint["state"]):
        slots = checkpoint["state"][number][arrays.QUANT_STATE]
        params.append(torch.nn.Parameter(torch.from_numpy(start[slots["state1"].shape])))
    groups = [{"params": [params[i] for i in x["params"]]} for x in checkpoint["param_groups"]]
    assert sum(len(group["params"]) for group in groups) == len(params)
    optimizer = KINDS[name](groups)
    optimizer.load_state_dict(arrays.as_tensors(checkpoint))
    return checkpoint, optimizer, params


def gradient(number, shape):
    """Any will do; this one has elements of many scales."""
    rng = np.random.default_rng(number)
    g = rng.normal(size=shape) * np.exp(rng.normal(size=shape)) * 1e-2
    return g.astype(np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_an_exported_checkpoint_has_what_bitsandbytes_saves(name):
    """Keys, shapes and dtypes are those of a state that it made itself."""
    checkpoint, _, params = loaded(name)
    fresh = KINDS[name]([torch.nn.Parameter(p.detach().clone()) for p in params])
    for p in fresh.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    fresh.step()
    own = arrays.as_arrays(fresh.state_dict())
    assert len(checkpoint["state"]) == len(params)
    for number, slots in enumerate(own["state"].values()):
        exported = checkpoint["state"][number]
        assert exported.keys() == slots.keys()
        assert type(exported["step"]) is int
        exported, slots = (x[arrays.QUANT_STATE] for x in (exported, slots))
        assert exported.keys() == slots.keys()
        for key, value in slots.items():
            assert (exported[key].shape, exported[key].dtype) == (value.shape, value.dtype), key
            if key.startswith("qmap"):
                np.testing.assert_array_max_ulp(exported[key], value, 2)
    for group in checkpoint["param_groups"]:
        assert group.keys() == own["param_groups"][0].keys()


@pytest.mark.parametrize("name", KINDS)
def test_bitsandbytes_goes_on_from_an_exported_checkpoint(name):
    """A step of the real optimizer has the state that the documented step has."""
    checkpoint, optimizer, params = loaded(name)
    before = [p.detach().numpy().copy() for p in params]
    for number, p in enumerate(params):
        p.grad = torch.from_numpy(gradient(number, tuple(p.shape)))
    optimizer.step()
    after = arrays.as_arrays(optimizer.state_dict())["state"]
    for group in checkpoint["param_groups"]:
        h = {key: group[key] for key in ("lr", "betas", "weight_decay")}
        for number in group["params"]:
            p, g = before[number], gradient(number, before[number].shape)
            slots = cuda_steps.decode(checkpoint["state"][number], p.shape)
            new = {**after[number], **after[number][arrays.QUANT_STATE]}
            assert new["step"] == slots.t + 1
            # A sum of two products in float32 is off by less than three roundings of its terms.
            slack = 3 * 2.0**-24 * (np.abs(slots.m) + np.abs(g))
            if slots.block_size is None:
                expected = cuda_steps.lion32(p, g, slots, **h)
                assert (np.abs(new["state1"] - expected.m.value) <= slack).all()
            else:
                table = new["qmap1"].astype(np.float64)
                expected = cuda_steps.lion8(p, g, slots, table=table, **h)
                np.testing.assert_allclose(new["absmax1"], expected.m.absmax, rtol=3 * 2.0**-24)
                assert cuda_steps.allowed(
                    new["state1"],
                    expected.m,
                    table,
                    256,
                    sign_rule=False,
                    slack=cuda_steps.CPU_SLACK,
                ).all()
            # Where float32 may take the other sign, the parameter may go the other way.
            decided = np.abs(expected.decisive) > slack
            assert decided.mean() > 0.9
            moved = params[number].detach().numpy()
            assert (np.abs(moved - expected.p) <= 4 * 2.0**-24 * (1 + np.abs(p)))[decided].all()
