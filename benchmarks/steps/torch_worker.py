"""Steps PyTorch's optimizers when asked: the process at the other end of `torch_peers`.

It runs in the environment of `./dev peers`, which has no JAX and another Python. A line of JSON
asks and another one answers. Between two questions it waits without using a processor.
"""

import importlib.metadata
import json
import os
import sys
import time

MAKERS = {
    "bitsandbytes Lion8bit": lambda params: _bitsandbytes("Lion8bit", params),
    "bitsandbytes LAMB8bit": lambda params: _bitsandbytes("LAMB8bit", params),
    "bitsandbytes AdamW8bit": lambda params: _bitsandbytes("AdamW8bit", params),
    "torchao AdamW8bit": lambda params: _torchao(params),
    "lion-pytorch Lion": lambda params: _lion_pytorch(params),
    "torch AdamW, fused": lambda params: _adamw(params),
}
PACKAGES = ("torch", "bitsandbytes", "torchao", "lion-pytorch")
_COMMON = {"lr": 1e-4, "weight_decay": 0.1}


def _bitsandbytes(name, params):
    import bitsandbytes

    return getattr(bitsandbytes.optim, name)(params, **_COMMON)


def _torchao(params):
    from torchao.optim import AdamW8bit

    return AdamW8bit(params, **_COMMON)


def _lion_pytorch(params):
    from lion_pytorch import Lion

    return Lion(params, **_COMMON)


def _adamw(params):
    import torch

    return torch.optim.AdamW(params, **_COMMON, fused=True)


class Worker:
    """The optimizers that were asked for, each with its parameters."""

    def __init__(self):
        import torch

        self._torch = torch
        self._optimizers = {}
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def hello(self, threads):
        """What it is, and from now on how many threads it uses."""
        self._torch.set_num_threads(threads)
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {"device": self._device, "versions": versions}

    def make(self, name, shapes, dtype):
        """Builds an optimizer and takes its first step, which makes its state."""
        torch = self._torch
        params = []
        for shape in shapes:
            values = torch.randn(shape, device=self._device).to(getattr(torch, dtype))
            params.append(torch.nn.Parameter(values))
            params[-1].grad = 1e-2 * torch.randn_like(values)
        optimizer = MAKERS[name](params)
        optimizer.step()
        self._optimizers[name] = optimizer
        arrays = [x for slots in optimizer.state.values() for x in slots.values()]
        return {"state_bytes": sum(_bytes(torch, x) for x in arrays)}

    def sample(self, name, calls):
        """The milliseconds of a step, over so many of them."""
        optimizer = self._optimizers[name]
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            optimizer.step()
        self._wait()
        return {"ms": 1e3 * (time.perf_counter() - start) / calls}

    def drop(self):
        """Lets go of all optimizers."""
        self._optimizers.clear()
        return {}

    def _wait(self):
        if self._device == "cuda":
            self._torch.cuda.synchronize()


def _bytes(torch, x):
    """Bytes of a slot; torchao's are tensors that consist of tensors."""
    if not torch.is_tensor(x):
        return 0
    if hasattr(x, "__tensor_flatten__"):
        return sum(_bytes(torch, getattr(x, part)) for part in x.__tensor_flatten__()[0])
    return x.numel() * x.element_size()


def main():
    """Answers until there are no more questions."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever libraries print
    worker = Worker()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(worker, question.pop("do"))(**question)
        except Exception as error:  # of one optimizer of several
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
