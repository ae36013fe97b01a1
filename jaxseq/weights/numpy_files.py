"""NumPy's ``.npz`` without pickle."""

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from jaxseq.weights.archives import Archive
from jaxseq.weights.errors import WeightsError, has_surrogates, shown
from jaxseq.weights.numbers import MAX_DIMENSIONS, numbers_in
from jaxseq.weights.safetensors_files import DTYPES

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

MAX_TEXTS = 1 << 20
"""In one array of texts: each becomes an object of Python, many times as large as in the file."""

MAX_NAME = 60_000
"""Bytes of a name: zip files have two bytes for the length."""


def read_npz(archive: Archive) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The numeric arrays, and the arrays of texts as lists or texts."""
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, Any] = {}
    for entry in archive.names:
        name = entry.removesuffix(".npy")
        if name == entry or name in tensors or name in others:
            raise WeightsError(f"the entry {shown(entry)} is no array of its own name")
        array = _array(name, archive.read(entry, compressed=True))
        if array.dtype.kind in "biufc":
            tensors[name] = array
        else:
            others[name] = array.tolist()
    return tensors, others


def _array(name: str, data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"version {version}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that Python 2 wrote
            shape, by_columns, dtype = HEADERS[version](stream)
    except Exception as error:  # NumPy has Python's parser read it, which raises nearly everything on damaged headers
        raise WeightsError(f"the array {shown(name)} has a damaged header ({shown(error)})") from None
    if dtype.kind not in "biufcUS":
        raise WeightsError(f"the array {shown(name)} has the dtype {shown(dtype)}, which is not read")
    if dtype.kind in "US" and math.prod(shape) > MAX_TEXTS:
        raise WeightsError(f"the array {shown(name)} of shape {shown(shape)} has more than {MAX_TEXTS} texts")
    shape, size = tuple(int(side) for side in shape), dtype.itemsize
    for dimension in shape:
        size *= dimension
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or size != len(data) - stream.tell():
        raise WeightsError(f"the array {shown(name)} of shape {shown(shape)} has {len(data) - stream.tell()} bytes")
    if dtype.itemsize == 0 or 0 in shape:
        return _empty(name, shape, dtype)
    if dtype.kind == "b":
        numbers_in(memoryview(data)[stream.tell() :], "bool", name)
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if by_columns else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _empty(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        return np.zeros(shape, dtype)
    except (ValueError, MemoryError, OverflowError):
        raise WeightsError(f"the array {shown(name)} has the shape {shown(shape)}") from None


def npz_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """An ``.npz`` file of the arrays, the same bytes for the same arrays.

    Raises:
        WeightsError: a dtype that the format cannot name (bfloat16), or a name that a zip file cannot hold.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, array in tensors.items():
            if array.dtype.kind not in "biufc":
                other = "; .safetensors has" if array.dtype.name in DTYPES.values() else ""
                raise WeightsError(f".npz has no dtype {array.dtype} ({shown(name)}){other}")
            if "\0" in name or has_surrogates(name) or len(name.encode()) > MAX_NAME:
                raise WeightsError(f".npz has no name {shown(name)}")
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                npy.write_array(entry, array, allow_pickle=False)
    return stream.getvalue()
