"""Files in torch's two formats, written without torch: pickles made opcode by opcode."""

import io
import pickle
import struct
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "bfloat16": "BFloat16Storage",
    "bool": "BoolStorage",
    "uint8": "ByteStorage",
    "int8": "CharStorage",
    "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "int16": "ShortStorage",
}
EMPTY_HOOKS = b"ccollections\nOrderedDict\n)R"


@dataclass
class Raw:
    """Opcodes that are written as they are."""

    code: bytes


@dataclass
class Tensor:
    """A tensor over ``numbers``, the storage ``key``; the other fields may lie."""

    key: str
    numbers: np.ndarray
    shape: tuple[Any, ...] | None = None
    strides: tuple[Any, ...] | None = None
    offset: Any = 0
    size: Any = None
    storage: str | None = None
    parameter: bool = False
    function: str = "_rebuild_tensor_v2"
    tail: tuple[bytes, ...] = field(default=(b"\x89", EMPTY_HOOKS))

    def code(self, legacy: bool) -> bytes:
        """Its opcodes."""
        shape = self.numbers.shape if self.shape is None else self.shape
        strides = contiguous(shape) if self.strides is None else self.strides
        name = self.storage or f"torch\n{STORAGES[self.numbers.dtype.name]}"
        size = self.numbers.size if self.size is None else self.size
        storage = b"(" + code("storage") + f"c{name}\n".encode() + code(self.key) + code("cpu") + code(size)
        storage += (b"N" if legacy else b"") + b"tQ"
        parts = storage + code(self.offset) + code(shape) + code(strides) + b"".join(self.tail)
        tensor = f"ctorch._utils\n{self.function}\n".encode() + b"(" + parts + b"tR"
        if self.parameter:
            return b"ctorch._utils\n_rebuild_parameter\n(" + tensor + b"\x88" + EMPTY_HOOKS + b"tR"
        return tensor


def contiguous(shape):
    """The strides, in numbers, of a contiguous array."""
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def code(value, legacy=False) -> bytes:
    """The opcodes of a value."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Tensor):
        return value.code(legacy)
    if isinstance(value, dict):
        items = (code(key, legacy) + code(each, legacy) for key, each in value.items())
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(code(each, legacy) for each in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(code(each, legacy) for each in value) + b"t"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    return pickle.dumps(value, 2)[2:-1]


def whole(value, legacy=False) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + code(value, legacy) + b"."


def tensors_in(value) -> dict[str, np.ndarray]:
    """The numbers of every storage."""
    if isinstance(value, Tensor):
        return {value.key: value.numbers}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return {key: numbers for part in parts for key, numbers in tensors_in(part).items()}


def legacy_file(value, *, little_endian=True, keys=None, sizes=None, magic=MAGIC, end=b"") -> bytes:
    """A file in the legacy format; ``keys`` and ``sizes`` (of the storages) may lie."""
    storages = tensors_in(value)
    system = {"protocol_version": PROTOCOL, "little_endian": little_endian, "type_sizes": {"int": 4}}
    head = [magic, PROTOCOL, system]
    data = b"".join(pickle.dumps(each, 2) for each in head) + whole(value, legacy=True)
    data += pickle.dumps(list(storages) if keys is None else keys, 2)
    for key, numbers in storages.items():
        data += struct.pack("<Q", (sizes or {}).get(key, numbers.size)) + numbers.tobytes()
    return data + end


def zip_file(
    value, *, byteorder=b"little", pickled=None, extra=(), without=(), compression=zipfile.ZIP_STORED
) -> bytes:
    """A file in the zip format; ``pickled`` replaces its pickle, ``extra`` are further entries."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        entries = [
            ("data.pkl", whole(value) if pickled is None else pickled),
            ("byteorder", byteorder),
            ("version", b"3\n"),
        ]
        entries += [(f"data/{key}", numbers.tobytes()) for key, numbers in tensors_in(value).items()]
        for name, data in [*entries, *extra]:
            if name not in without:
                file.writestr(zipfile.ZipInfo(f"archive/{name}"), data, compression)
    return stream.getvalue()
