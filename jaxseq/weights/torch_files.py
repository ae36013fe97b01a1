"""torch's files without torch: the zip format (torch >= 1.6) and the legacy format before it."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from jaxseq.weights.archives import Archive
from jaxseq.weights.errors import WeightsError, shown
from jaxseq.weights.numbers import numbers_in
from jaxseq.weights.pickle_values import PickleReader
from jaxseq.weights.tensor_records import Storage, Tensor

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")
"""The first bytes of a file in the legacy format: the pickle of ``MAGIC``."""

PROTOCOL = 1001
MAX_DEPTH = 32
MAX_CHARACTERS = 10_000_000
"""Of all names together: values that occur in many places could otherwise make names without end."""

Named: TypeAlias = tuple[dict[str, np.ndarray], dict[str, Any]]
"""Tensors and other leaves (numbers, texts, None) by name."""


def read_torch_zip(archive: Archive) -> Named:
    """The tensors and other leaves of ``data.pkl``. The storages are entries ``data/KEY``, stored without
    compression.
    """
    pickles = [name for name in archive.names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"a torch file has one data.pkl, this has {len(pickles)}")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.names:
        raise WeightsError("a TorchScript program, not a file of weights: save its state dict")
    order = archive.read(f"{folder}byteorder", compressed=False) if f"{folder}byteorder" in archive.names else b"little"
    if order != b"little":
        raise WeightsError(f"numbers in byte order {shown(order.decode(errors='replace'))}: only little-endian is read")
    reader = PickleReader(archive.read(pickles[0], compressed=False))
    value = reader.read()
    numbers = {}
    for key, storage in reader.storages.items():
        entry = f"{folder}data/{key}"
        if entry not in archive.names:
            raise WeightsError(f"storage {shown(key)} is not in the file")
        numbers[key] = _numbers(storage, archive.read(entry, compressed=False))
    return _named(value, numbers)


def read_torch_legacy(data: bytes) -> Named:
    """The tensors and other leaves of the fourth of five pickles: magic number, protocol, system, value, keys of the
    storages. Then follow, for each storage, the count of its numbers (8 bytes) and the numbers.
    """
    position = 0
    values, readers = [], []
    for _ in range(5):
        readers.append(PickleReader(data, position))
        values.append(readers[-1].read())
        position = readers[-1].position
    magic, protocol, system, value, keys = values
    if magic != MAGIC or protocol != PROTOCOL or type(system) is not dict or type(keys) is not list:
        raise WeightsError("not torch's legacy format: the magic number, the protocol or the list of keys is wrong")
    if system.get("little_endian") is not True:
        raise WeightsError("numbers in big-endian byte order: only little-endian is read")
    storages = readers[3].storages
    if any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise WeightsError(
            f"the {len(keys)} storages of the file are not the {len(storages)} that its pickle refers to"
        )
    view, numbers = memoryview(data), {}
    for key in keys:
        storage = storages[key]
        size = int.from_bytes(view[position : position + 8], "little")
        end = position + 8 + storage.size * np.dtype(storage.dtype).itemsize
        if end > len(data):
            raise WeightsError(f"the file is truncated inside storage {shown(key)}")
        if size != storage.size:
            raise WeightsError(f"storage {shown(key)} has {size} numbers, the pickle says {storage.size}")
        numbers[key] = _numbers(storage, view[position + 8 : end])
        position = end
    if position != len(data):
        raise WeightsError(f"{len(data) - position} bytes follow the last storage")
    return _named(value, numbers)


def _numbers(storage: Storage, data: bytes | memoryview) -> np.ndarray:
    dtype = np.dtype(storage.dtype)
    if len(data) != storage.size * dtype.itemsize:
        raise WeightsError(
            f"storage {shown(storage.key)} has {len(data)} bytes, not {storage.size} numbers of {storage.dtype}"
        )
    return numbers_in(data, storage.dtype, f"storage {storage.key}")


def _array(tensor: Tensor, numbers: dict[str, np.ndarray]) -> np.ndarray:
    storage = numbers[tensor.storage.key]
    if 0 in tensor.shape:
        return np.empty(tensor.shape, storage.dtype)
    strides = [stride * storage.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)


def _named(value: Any, numbers: dict[str, np.ndarray]) -> Named:
    """The leaves of nested dicts, lists and tuples, named by their keys and indices joined with dots."""
    if type(value) is not dict:
        raise WeightsError(f"the file holds {type(value).__name__.lower()}, not a dict of tensors")
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, Any] = {}
    characters = 0
    open_parts = [("", _items(value))]  # depth first, so that no more names exist than lie on one path
    while open_parts:
        prefix, items = open_parts[-1]
        key, part = next(items, (None, None))
        if key is None:
            open_parts.pop()
            continue
        name = f"{prefix}{key}"
        characters += len(name) + 1
        if characters > MAX_CHARACTERS or len(open_parts) > MAX_DEPTH:
            raise WeightsError(f"the value {shown(name)} is nested too deeply, or contains itself")
        if name in tensors or name in others:
            raise WeightsError(f"the name {shown(name)} occurs twice")
        if isinstance(part, dict | list | tuple):
            open_parts.append((f"{name}.", _items(part)))
        elif isinstance(part, Tensor):
            tensors[name] = _array(part, numbers)
        elif part is None or isinstance(part, bool | int | float | str | bytes):
            others[name] = part
        else:
            raise WeightsError(f"{shown(name)} is a {type(part).__name__.lower()}, neither a tensor nor a plain value")
    return tensors, others


def _items(part: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    return iter(part.items() if isinstance(part, dict) else enumerate(part))
