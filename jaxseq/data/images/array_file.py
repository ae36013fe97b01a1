"""A file that holds one array and its description, written atomically and opened memory-mapped."""

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from jaxseq.files import named_errors, open_regular, parse_json

DTYPE = re.compile(r"[<>|][biufcV][0-9]{1,4}")
MAGIC = b"jaxseq array 1\n\0"
DIGEST_SIZE = 16
FOOTER_SIZE = 8 + DIGEST_SIZE + len(MAGIC)
NEW_SECONDS = 60.0
MAX_DIMENSIONS, MAX_SIDE = 32, 2**48


class ArrayFileError(ValueError):
    """A file that is not a whole array file, or is damaged; the message is the reason."""


class StoredArray(NamedTuple):
    """A read-only array, the digest of each of its rows, and its description."""

    array: Shaped[np.ndarray, "N *rest"]
    digests: UInt8[np.ndarray, "N 16"]
    description: dict[str, Any]


def row_digest(row: np.ndarray) -> bytes:
    """The BLAKE2b digest of a row's bytes."""
    return hashlib.blake2b(row.tobytes(), digest_size=DIGEST_SIZE).digest()


def row_digests(array: Shaped[np.ndarray, "N *rest"], *, workers: int = 4) -> UInt8[np.ndarray, "N 16"]:
    """The digests of all rows, by several threads (hashing releases the interpreter's lock)."""
    with ThreadPoolExecutor(workers) as pool:
        found = b"".join(pool.map(lambda row: row_digest(array[row]), range(len(array))))
    return np.frombuffer(found, np.uint8).reshape(len(array), DIGEST_SIZE)


class RowWriter:
    """Writes the rows of an array in any order, from any thread."""

    def __init__(self, path: Path, descriptor: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype, self._path, self._descriptor = shape, dtype, path, descriptor
        self._row_size = math.prod(shape[1:]) * dtype.itemsize
        self.digests = np.zeros((shape[0], DIGEST_SIZE), np.uint8)
        self.digests[:] = np.frombuffer(row_digest(np.zeros(shape[1:], dtype)), np.uint8)

    def __setitem__(self, row: int, values: np.ndarray) -> None:
        """Write a row; rows that are never written are zero."""
        if values.shape != self.shape[1:] or values.dtype != self.dtype:
            raise ValueError(f"a row of {self.shape[1:]} {self.dtype}, not {values.shape} {values.dtype}")
        raw, offset = values.tobytes(), row * self._row_size
        with named_errors(self._path):
            while raw:
                written = os.pwrite(self._descriptor, raw, offset)
                raw, offset = raw[written:], offset + written
        self.digests[row] = np.frombuffer(row_digest(values), np.uint8)


@contextmanager
def new_array_file(path: Path, shape: tuple[int, ...], dtype: Any, description: dict[str, Any]) -> Iterator[RowWriter]:
    """Write an array file; it appears under its name, complete, when the block ends without an error.

    ``description`` is JSON; it may be changed until the block ends. The file replaces an older one. Another process
    that writes the same file at the same time writes to a file of its own; the last one to finish stays. The
    unfinished file of a process that was killed, whose name starts with a dot, is deleted by the next one.

    Raises:
        OSError: the folder cannot be written, or has no room (names both sizes, before anything is written); names
            the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(dtype)
    needed = math.prod(shape) * dtype.itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{path}: needs {needed / 1e9:.1f} GB, but the disk has only {free / 1e9:.1f} GB free")
    _delete_unfinished(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    _lock(descriptor)
    try:
        with os.fdopen(descriptor, "r+b") as file:
            with named_errors(path):
                file.truncate(needed)
            rows = RowWriter(path, descriptor, shape, dtype)
            yield rows
            fields = {"shape": shape, "dtype": dtype.str, "description": description}
            described = json.dumps(fields).encode("utf-8", "surrogatepass")
            body = rows.digests.tobytes() + described
            with named_errors(path):
                file.seek(needed)
                file.write(body + len(described).to_bytes(8, "little") + _digest(body) + MAGIC)
                file.flush()
                os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_array_file(path: Path, *, verify: bool = True) -> StoredArray:
    """Open an array file memory-mapped. ``verify`` reads it all and compares each row with its digest.

    Raises:
        FileNotFoundError: there is no such file.
        ArrayFileError: not an array file, cut, or damaged.
        ValueError: a folder, a pipe, a device or a socket.
        OSError: the file cannot be read; names it.
    """
    with named_errors(path), open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - FOOTER_SIZE))
        footer = file.read()
        if len(footer) < FOOTER_SIZE or not footer.endswith(MAGIC):
            raise ArrayFileError("not a whole array file")
        length = int.from_bytes(footer[:8], "little")
        if length > size:
            raise ArrayFileError("its description is damaged")
        file.seek(max(0, size - FOOTER_SIZE - length))
        described = file.read(length)
        try:
            fields = parse_json(described)
            if not DTYPE.fullmatch(fields["dtype"]):
                raise ValueError("not the name of a dtype of numbers")
            shape, dtype = tuple(int(side) for side in fields["shape"]), np.dtype(fields["dtype"])
            count, description = shape[0], dict(fields["description"])
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            raise ArrayFileError("its description is damaged") from None
        data = math.prod(shape) * dtype.itemsize
        possible = min(shape) >= 0 and max(shape) < MAX_SIDE and len(shape) <= MAX_DIMENSIONS
        if not possible or size != data + count * DIGEST_SIZE + length + FOOTER_SIZE:
            raise ArrayFileError("its size is wrong")
        file.seek(data)
        digests = file.read(count * DIGEST_SIZE)
        if _digest(digests + described) != footer[8 : 8 + DIGEST_SIZE]:
            raise ArrayFileError("its description is damaged")
        array = np.memmap(file, dtype, "r", shape=shape) if data else np.zeros(shape, dtype)
    table = np.frombuffer(digests, np.uint8).reshape(count, DIGEST_SIZE)
    if verify and not np.array_equal(row_digests(array), table):
        raise ArrayFileError("its contents do not fit their checksums")
    return StoredArray(array, table, description)


def _delete_unfinished(path: Path) -> None:
    """Delete unfinished files that no process has locked; new ones, which may not be locked yet, are left."""
    for other in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):
            found = other.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > NEW_SECONDS:
                with other.open("r+b") as file:
                    if _lock(file.fileno()):
                        other.unlink()


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed; whether it could be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=DIGEST_SIZE).digest()
