"""Files of `torch.save`, read without PyTorch.

Since PyTorch 1.6 such a file is a ZIP archive without compression: `NAME/data.pkl` is a pickle of
everything but the numbers of tensors, which are in `NAME/data/KEY`. Before, it was five pickles and
then the numbers. A pickle is read as data (`pickled`). Of an archive the CRC of every part that is
read is compared, so a flipped bit does not become another number.

Like `arrays`, this is tested without JAX, under Python 3.11.
"""

import importlib
import io
import math
import struct
import sys
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from optax_lamblion._checkpoints.bitsandbytes.pickled import Machine, Refused
from optax_lamblion._checkpoints.bitsandbytes.tensors import Tensor

ZIP = b"PK\x03\x04"
"""How an archive begins."""

_MOST_PICKLED = 2**26  # bytes, without the numbers of tensors
_MOST_REPEATED = 8  # how often the numbers of a file may be in its tensors
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a part of an archive: lengths of its name and more

_DTYPES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
_CONSTANTS = frozenset(_DTYPES) | {
    "torch.Tensor",
    *(
        f"torch.{name}"
        for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    ),
}


class _Storage(NamedTuple):
    """Numbers that tensors are made of, as they lie in memory."""

    numbers: np.ndarray


def load(path):
    """What a file holds, with a `Tensor` for every tensor, and the devices that they were on.

    Arrays are views of the file.

    Raises:
      Refused: It needs more than tensors, numbers and containers. Of a file that is damaged nearly
        any error may come.
    """
    content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    if bytes(content[257:262]) == b"ustar":
        raise Refused("is a tar file of PyTorch 0.1, which executes when it is loaded")
    with path.open("rb") as file:
        reader = (_Archive if bytes(content[:4]) == ZIP else _Pickles)(content, file)
    return reader.tree, reader.devices


class _Reader:
    """What both formats have in common: how tensors are put together."""

    def __init__(self, content):
        self.content = content
        self.devices = set()
        self._left = _MOST_REPEATED * content.nbytes
        self._machine = Machine(
            {
                "collections.OrderedDict": lambda items=(): dict(items),
                "collections.Counter": lambda items=(): dict(items),
                "collections.defaultdict": lambda *_: {},
                "torch.Size": tuple,
                "torch.device": lambda *where: ":".join(map(str, where)),
                "_codecs.encode": _encoded,
                "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
                "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
                "torch._utils._rebuild_tensor": self._tensor,
                "torch._utils._rebuild_tensor_v2": self._tensor,
                "torch._tensor._rebuild_from_type_v2": self._of_type,
            },
            _CONSTANTS,
            self._storage,
        )

    def _numbers(self, key, dtype, count) -> np.ndarray:
        """The numbers of that key, of which there must be so many."""
        raise NotImplementedError

    def _storage(self, identifier):
        kind, dtype, key, device, count, *view = identifier
        if kind != "storage" or dtype not in _DTYPES or view not in ([], [None]):
            raise Refused(f"needs storage of the kind `{dtype}`")
        self.devices.add(str(device))
        return _Storage(self._numbers(str(key), _dtype(_DTYPES[dtype]), int(count)))

    def _tensor(self, storage, offset, shape, strides, *_):
        """A tensor, of which every number is in its storage, though perhaps more than once."""
        numbers = storage.numbers
        if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
            raise ValueError(f"a tensor of shape {shape}, strides {strides}, offset {offset}")
        size = math.prod(shape)
        pairs = list(zip(shape, strides, strict=True))
        last = offset + sum((n - 1) * stride for n, stride in pairs) if size else 0
        if size and last >= numbers.size:
            raise ValueError(f"a tensor of shape {shape} with {numbers.size} numbers")
        self._left -= size * numbers.itemsize
        if self._left < 0:
            raise Refused("has tensors that repeat its numbers many times over")
        steps = [numbers.itemsize * (stride if size else 0) for stride in strides]
        start = numbers[offset:] if size else numbers
        return Tensor(np.lib.stride_tricks.as_strided(start, shape, steps))

    def _of_type(self, make, kind, arguments, _):
        """A tensor with attributes, which are nothing to us."""
        if make != "torch._utils._rebuild_tensor_v2" or kind != "torch.Tensor":
            raise Refused(f"needs `{kind}`")
        return self._tensor(*arguments)


class _Archive(_Reader):
    """A file since PyTorch 1.6."""

    def __init__(self, content, file):
        super().__init__(content)
        with zipfile.ZipFile(file) as archive:
            self._parts = {part.filename: part for part in archive.infolist()}
        names = [name for name in self._parts if name.endswith("/data.pkl")]
        if any(name.endswith("/constants.pkl") for name in self._parts):
            raise Refused("is a TorchScript archive, which executes when it is loaded")
        (name,) = names
        self._folder = name.removesuffix("data.pkl")
        order = self._folder + "byteorder"
        self._swapped = order in self._parts and self._part(order).tobytes() != (
            sys.byteorder.encode()
        )
        pickled = self._part(name)
        if pickled.nbytes > _MOST_PICKLED:
            raise Refused(f"has a pickle of {pickled.nbytes:,} bytes beside its numbers")
        self._storages = {}
        self.tree = self._machine.load(io.BytesIO(pickled.tobytes()))

    def _numbers(self, key, dtype, count):
        if key not in self._storages:
            part = self._part(f"{self._folder}data/{key}")
            self._storages[key] = part[: count * dtype.itemsize].view(dtype)
            if self._swapped:
                self._storages[key] = self._storages[key].byteswap()
        numbers = self._storages[key]
        if (numbers.dtype, numbers.size) != (dtype, count):
            raise ValueError(f"storage {key} has not {count} numbers of {dtype}")
        return numbers

    def _part(self, name):
        """The bytes of a part, as they are in the file."""
        part = self._parts[name]
        if part.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"has a part `{name}` that is compressed, as PyTorch never writes it")
        at = part.header_offset
        magic, *lengths = _LOCAL_HEADER.unpack(self.content[at : at + 30].tobytes())
        start = at + 30 + sum(lengths)
        found = self.content[start : start + part.file_size]
        if magic != ZIP or found.nbytes != part.file_size:
            raise ValueError(f"part {name!r} is not where it should be")
        if zlib.crc32(found) != part.CRC:
            raise ValueError(
                f"part {name!r} has another checksum than the archive says, unless it was saved "
                "after `torch.serialization.set_crc32_options(False)`"
            )
        return found


class _Pickles(_Reader):
    """A file before PyTorch 1.6: signature, version, system, content, order of the numbers."""

    def __init__(self, content, file):
        super().__init__(content)
        self._storages = {}
        signature, _, system = (self._machine.load(file) for _ in range(3))
        if signature != 0x1950A86A20F9469CFC6C:
            raise ValueError("it does not begin as files of PyTorch do")
        self.tree = self._machine.load(file)
        swapped = system["little_endian"] != (sys.byteorder == "little")
        for key in self._machine.load(file):
            numbers = self._storages.pop(key)
            (count,) = struct.unpack("<q", file.read(8))
            stored = np.frombuffer(file.read(numbers.nbytes), numbers.dtype)
            if count != numbers.size:
                raise ValueError(f"storage {key} has not {numbers.size} numbers, but {count}")
            numbers[...] = stored.byteswap() if swapped else stored
        if self._storages:
            raise ValueError("numbers of tensors are missing")

    def _numbers(self, key, dtype, count):
        if not 0 <= count * dtype.itemsize <= self.content.nbytes:
            raise ValueError(f"storage {key} is larger than the file")
        if key not in self._storages:
            self._left -= count * dtype.itemsize
            if self._left < 0:
                raise Refused("has more numbers than a file of its size")
            self._storages[key] = np.zeros(count, dtype)  # their numbers come last
        return self._storages[key]


def _dtype(name):
    if name == "bfloat16":
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return np.dtype(name)


def _encoded(text, encoding):
    """Bytes, as pickles of protocol 2 have them."""
    if encoding != "latin1":
        raise Refused("needs a codec for texts")
    return text.encode("latin1")
