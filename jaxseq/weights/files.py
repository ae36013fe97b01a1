"""Files of weights: arrays by name. What a file is follows from its first bytes, not from its suffix."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxseq.files import enough_memory, given_path, read_regular, write_atomic
from jaxseq.typing import Shaped
from jaxseq.weights.archives import Archive
from jaxseq.weights.errors import WeightsError, shown
from jaxseq.weights.numpy_files import npz_bytes, read_npz
from jaxseq.weights.safetensors_files import read_safetensors, safetensors_bytes
from jaxseq.weights.torch_files import LEGACY, Named, read_torch_legacy, read_torch_zip

MAX_REASON = 300
"""Characters of a message, which may quote what a file holds."""


class WeightFile(NamedTuple):
    """The contents of a file of weights.

    ``tensors`` are the arrays by name, read-only. ``others`` are all other leaves by name: numbers, texts and None of a
    checkpoint (its epoch, its options), the metadata of a safetensors file. ``sha256`` is the file's, in hexadecimal.
    """

    tensors: dict[str, np.ndarray]
    others: dict[str, Any]
    sha256: str


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a ``.safetensors``, ``.npz`` or torch file by name: the ``tensors`` of ``read_weight_file``.

    Raises:
        WeightsError, OSError, ImportError: as ``read_weight_file``.
    """
    return read_weight_file(path).tensors


def read_weight_file(path: str | os.PathLike[str]) -> WeightFile:
    """Reads a ``.safetensors`` file, an ``.npz`` file without pickle, or a torch file, in its zip or legacy format.

    Nothing in the file is executed, and torch is not needed: the pickle of a torch file is interpreted, and may hold
    tensors, numbers, texts, lists and dicts only. Nested dicts and lists are flattened: their keys are joined with dots
    (``{"model": {"fc.bias": ...}}`` gives ``"model.fc.bias"``). Tensors that share a storage share memory. The
    attribute ``_metadata`` of torch's state dicts (versions of modules) is dropped.

    Raises:
        WeightsError: no regular file, or one of another kind; a damaged or truncated file, sizes that do not fit, names
            that occur twice; in a torch file also classes and functions other than those of tensors, compressed
            entries, and big-endian numbers. One line, with the file and the cause.
        OSError: the file cannot be read.
        ImportError: a safetensors file, and safetensors is not installed.
    """
    try:
        data = read_regular(given_path(path))
        with enough_memory(path):
            tensors, others = _read(data)
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)}: {str(error)[:MAX_REASON]}") from None
    except ValueError as error:
        raise WeightsError(str(error)) from None
    for array in tensors.values():
        array.flags.writeable = False
    return WeightFile(tensors, others, hashlib.sha256(data).hexdigest())


def write_weights(path: str | os.PathLike[str], tensors: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Writes arrays by name as ``.safetensors`` or ``.npz``, which the suffix of ``path`` chooses.

    The file is written beside its place and then renamed: a reader sees the old file or the whole new one.

    Raises:
        WeightsError: another suffix, or a dtype that the format has not (``.npz`` has no bfloat16), or a name
            that it cannot hold.
        OSError: the file cannot be written; names it.
        ImportError: ``.safetensors``, and safetensors is not installed.
    """
    file = given_path(path)
    writers = {".safetensors": safetensors_bytes, ".npz": npz_bytes}
    if file.suffix not in writers:
        raise WeightsError(f"{file}: the suffix is {shown(file.suffix)}, not one of {', '.join(writers)}")
    try:
        data = writers[file.suffix]({name: np.asarray(array) for name, array in tensors.items()})
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    write_atomic(file, data)


def weights_fingerprint(tensors: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
    """The SHA-256 of names, dtypes, shapes and numbers, in hexadecimal.

    It does not depend on the order of the names or the format of the file.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        head = f"{len(name.encode())}:{name}{array.dtype.name}{array.shape}"
        digest.update(head.encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def _read(data: bytes) -> Named:
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length <= len(data) - 8:
        return read_safetensors(data)
    if data.startswith(LEGACY):
        return read_torch_legacy(data)
    if data.startswith(b"PK"):
        archive = Archive(data)
        if any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.names):
            return read_torch_zip(archive)
        return read_npz(archive)
    if not data:
        raise WeightsError("the file is empty")
    raise WeightsError("neither a safetensors file, nor .npz, nor one that torch.save wrote")
