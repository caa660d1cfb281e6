"""The peers in PyTorch: bitsandbytes and PyTorch's own, on the same shapes, by CUDA events.

    python -m tests.gpu.torch_peers

prints what they take. `__main__` runs it as a part, in a process without JAX's arrays.
"""

import functools
import json
import math

from tests.gpu import floors
from tests.gpu.records import Absent, Run

_WARM_UP = 3
_SAMPLES = 15
_SAMPLE_MS = 40.0
_COPIED_BYTES = 2**32
_LEAST_ROOM = 2**29


def timings(run):
    """`(name, function)` for each peer."""
    yield "torch: copy", functools.partial(_copy, run)
    for dtype in ("bf16", "f32"):
        p = 2 if dtype == "bf16" else 4
        rows = (
            ("bitsandbytes Lion8bit", _bitsandbytes("Lion8bit"), floors.lion8(p, p, "apply_fused")),
            # It keeps both slots in float32, and reads them in both of its passes.
            ("bitsandbytes LAMB32bit", _bitsandbytes("LAMB32bit"), floors.lamb32(p, p, 4)),
            (
                "bitsandbytes AdamW8bit",
                _bitsandbytes("AdamW8bit"),
                floors.adam(p, p, 1) + 4 * 4 / floors.BLOCK,
            ),
            ("torch AdamW fused", _adamw, floors.adam(p, p, p)),
        )
        for what in ("large", "gpt2"):
            for name, make, floor in rows:
                if what == "gpt2" and dtype == "f32":
                    continue
                about = {"what": what, "optimizer": name, "dtype": dtype}
                yield (
                    f"{what}: {name} {dtype}",
                    functools.partial(_step, run, what, dtype, make, floor, about),
                )


def paged(run):
    """`(name, function)` for bitsandbytes' paged Lion, where its state fits and where it does not.

    Its state is in managed memory: while there is room it stays on the device, and nothing is
    moved.
    """
    make = _bitsandbytes("PagedLion8bit")
    for crowded in (False, True):
        name = "paged: bitsandbytes PagedLion8bit bf16" + ", device full" * crowded
        about = {"paging": "stream", "optimizer": "bitsandbytes PagedLion8bit", "dtype": "bf16"}
        floor = 2 * _CODES
        yield name, functools.partial(_step, run, "large", "bf16", make, floor, about, crowded)


_CODES = 1 + 4 / floors.BLOCK
"""Bytes of state per parameter."""


def _torch(run):
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Absent(f"torch cannot be imported: {error}") from None
    if run.interpret or not torch.cuda.is_available():
        raise Absent("torch has no GPU here")
    return torch


def _bitsandbytes(name):
    def make(torch, params):
        try:
            import bitsandbytes  # pyright: ignore[reportMissingImports]
        except Exception as error:  # its library may lack what it links to
            raise Absent(f"bitsandbytes cannot be imported: {error}") from None
        return getattr(bitsandbytes.optim, name)(params, lr=1e-4, weight_decay=0.1)

    return make


def _adamw(torch, params):
    return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.1, fused=True)


def _copy(run):
    torch = _torch(run)
    size = min(_COPIED_BYTES, torch.cuda.mem_get_info()[0] // 4) // 4
    source = torch.arange(size, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    times, calls = _times(torch, run, lambda: target.copy_(source))
    return {"optimizer": "torch copy"} | _summary(times, size, 8, calls)


def _step(run, what, dtype, make, floor, about, crowded=False):
    torch = _torch(run)
    free = torch.cuda.mem_get_info()[0]
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    shapes = _shapes(torch, run, what)
    params = []
    for shape in shapes:
        x = torch.empty(shape, dtype=kind, device="cuda").normal_()
        param = torch.nn.Parameter(x)
        param.grad = torch.empty(shape, dtype=kind, device="cuda").normal_(std=2.0**-6)
        params.append(param)
    optimizer = make(torch, params)
    size = sum(map(math.prod, shapes))
    ballast = torch.empty(0, dtype=torch.uint8, device="cuda")
    if crowded:
        # A quarter of the state finds room, and what else a step needs.
        most = torch.cuda.mem_get_info()[0] - max(_LEAST_ROOM, int(_CODES * size) // 4)
        ballast = torch.empty(max(most, 0), dtype=torch.uint8, device="cuda")
        about = about | {"link_bytes_in": _CODES * size, "link_bytes_out": _CODES * size}
        about |= {"ballast_bytes": ballast.numel()}
    try:
        times, calls = _times(torch, run, optimizer.step)
    finally:
        torch.cuda.synchronize()
    # PyTorch's own count knows nothing of managed memory.
    used = free - torch.cuda.mem_get_info()[0] - ballast.numel()
    state = sum(
        x.numel() * x.element_size()
        for slots in optimizer.state.values()
        for x in slots.values()
        if torch.is_tensor(x)
    )
    del optimizer, params, param, x, ballast
    torch.cuda.empty_cache()
    facts = about | {"tensors": len(shapes), "state_bytes_per_element": state / size}
    facts |= {"peak_bytes": used, "peak_is_its_own": True} if "paging" in about else {}
    return facts | _summary(times, size, floor, calls)


def _shapes(torch, run, what):
    if what == "gpt2":
        from optax_lamblion.demo.shapes import MODELS

        return list(MODELS["gpt2-124m"]().values())
    # Parameters and gradients in float32, two slots, and LAMB32bit's float32 copy of a leaf.
    fits = int(0.8 * torch.cuda.mem_get_info()[0] / (20 * math.prod(run.shape)))
    return [run.shape] * max(1, min(run.leaves, fits))


def _times(torch, run, call):
    for _ in range(_WARM_UP):
        call()
    torch.cuda.synchronize()
    calls = min(max(math.ceil(_SAMPLE_MS / max(_sample(torch, call, 3), 1e-4)), 3), 400)
    return [_sample(torch, call, calls) for _ in range(3 if run.quick else _SAMPLES)], calls


def _sample(torch, call, calls):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


def _summary(times, elements, bytes_per_element, calls):
    from tests.gpu.timing import summary

    return summary(times, elements, bytes_per_element, calls)


def main():
    """Prints one line of JSON per peer."""
    run = Run(quick=False, interpret=False, leaves=16, shape=(8192, 8192))
    for name, function in timings(run):
        try:
            print(json.dumps({"name": name} | function()), flush=True)
        except Exception as error:  # one peer of several
            print(json.dumps({"name": name, "error": repr(error)}), flush=True)


if __name__ == "__main__":
    main()
