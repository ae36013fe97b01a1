"""The safetensors format, by its library."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseq.files import parse_json
from jaxseq.weights.errors import WeightsError, has_surrogates, shown
from jaxseq.weights.numbers import MAX_DIMENSIONS, numbers_in

DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "C64": "complex64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "I8": "int8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "U8": "uint8",
}
"""The format's names of dtypes, and NumPy's."""

METADATA = "__metadata__"
"""The entry of a header that is no tensor."""


def read_safetensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors, and the file's metadata (texts).

    Raises:
        WeightsError: a damaged file, a name that occurs twice, or a dtype that NumPy has not.
        ImportError: safetensors is not installed.
    """
    library = _library()
    try:
        found = library.deserialize(data)
    except library.SafetensorError as error:
        raise WeightsError(f"a damaged safetensors file ({error})") from None
    length = int.from_bytes(data[:8], "little")
    try:
        header = parse_json(data[8 : 8 + length])
    except ValueError as error:
        raise WeightsError(f"a damaged safetensors file ({error})") from None
    tensors = {}
    for name, view in found:
        if view["dtype"] not in DTYPES:
            raise WeightsError(f"{shown(name)} has the dtype {view['dtype']}, which is not read")
        if len(view["shape"]) > MAX_DIMENSIONS:
            raise WeightsError(f"{shown(name)} has {len(view['shape'])} dimensions")
        numbers = numbers_in(view["data"], DTYPES[view["dtype"]], name)
        try:
            tensors[name] = numbers.reshape(view["shape"])
        except (ValueError, OverflowError):  # no numbers, and sides beyond those that NumPy has
            raise WeightsError(f"{shown(name)} has the shape {shown(view['shape'])}") from None
    return tensors, header.get(METADATA) or {}


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file of the arrays.

    Raises:
        WeightsError: a dtype that the format has not, or a name that it cannot hold or keeps for itself.
        ImportError: safetensors is not installed.
    """
    for name, array in tensors.items():
        if name == METADATA or has_surrogates(name):
            raise WeightsError(f"safetensors has no name {shown(name)}")
        if array.dtype.name not in DTYPES.values():
            raise WeightsError(f"safetensors has no dtype {array.dtype} ({shown(name)})")
    return bytes(_library().numpy.save({name: np.array(array, order="C") for name, array in tensors.items()}))


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError('safetensors files need safetensors: pip install "jaxseq[images]"') from None
    return safetensors
