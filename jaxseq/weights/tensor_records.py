"""What a torch pickle says of its tensors: names, storages and views, checked, without their numbers."""

from dataclasses import dataclass
from typing import Any

from jaxseq.weights.errors import WeightsError, shown
from jaxseq.weights.numbers import MAX_DIMENSIONS

STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
}
"""The storages of torch and the dtypes of their numbers."""


@dataclass(frozen=True, slots=True)
class Global:
    """The full name of a class or function; never the thing itself."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """``size`` numbers of a dtype, kept in the file under a key."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage. Offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def view_of(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor whose numbers all lie in its storage, and which has no more numbers than its storage."""
    integers = all(
        type(part) is tuple and len(part) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in part)
        for part in (shape, strides, (offset,))
    )
    if type(storage) is not Storage or not integers or len(shape) != len(strides):
        raise WeightsError("the pickle has a tensor without a storage, an offset, a shape or strides")
    size, allocated = 1, 1
    for dimension in shape:
        size, allocated = size * dimension, allocated * max(dimension, 1)
        if allocated >= 1 << 48:
            raise WeightsError(f"a tensor of storage {shown(storage.key)} has the shape {shown(shape)}")
    last = offset + sum((dimension - 1) * stride for dimension, stride in zip(shape, strides, strict=True))
    if size and (last >= storage.size or size > storage.size):
        raise WeightsError(
            f"a tensor of shape {shown(shape)} exceeds storage {shown(storage.key)} of {storage.size} numbers"
        )
    steps = tuple(0 if dimension == 1 else stride for dimension, stride in zip(shape, strides, strict=True))
    return Tensor(storage, offset, shape, steps)
