"""Images from files, decoded and resized once, with random access by index."""

import hashlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from jaxseq.data.images.array_file import (
    ArrayFileError,
    RowWriter,
    StoredArray,
    new_array_file,
    open_array_file,
    row_digests,
)
from jaxseq.data.images.decoding import (
    MAX_PIXELS,
    ImageError,
    ResizeMode,
    check_resize,
    pillow_version,
    read_sized_image,
)
from jaxseq.files import given_path
from jaxseq.terminal import printable

logger = logging.getLogger(__name__)

LARGE = 4.0
"""Gigabytes of images in memory from which a message suggests a cache."""


class ImageFiles:
    """The images of files in one size: an ``ImageSource`` of those that can be read.

    Files are decoded and resized (``decoding.read_image``) by several threads, once. With a ``cache`` folder the result
    is a file there, memory-mapped, which later runs open; without one it is kept in memory.

    A cached file is used if it fits: the paths in their order, the size and the modification time of each file, the
    options, and the version of Pillow. These are cheap to look up, contents are not; a file that is changed without a
    change of size and modification time is not noticed. A cache that does not fit, is cut or is damaged (each image
    has a checksum) is built again, and a message says why. Several processes may build one cache at the same time.

    The ``fingerprint`` is that of the resized images themselves, wherever they come from.

    Args:
        paths: the files.
        size: height Y and width X.
        mode: ``squash``, ``crop`` or ``pad``.
        cache: a folder for the resized images, or None.
        max_pixels: files with more pixels are refused before they are decoded.
        workers: the number of threads; default: one for each processor.
        verify: compare a cache with its checksums when it is opened, which reads all of it.

    Attributes:
        kept: the indices of the given paths that are images, in order; image i is ``paths[kept[i]]``.
        skipped: ``path: reason`` for every other path.

    Raises:
        ValueError: an unknown mode, or a number below 1.
        OSError: the cache cannot be written.
        ImportError: the extra ``images`` is not installed.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        size: tuple[int, int],
        *,
        mode: ResizeMode = "crop",
        cache: str | Path | None = None,
        max_pixels: int = MAX_PIXELS,
        workers: int | None = None,
        verify: bool = True,
    ) -> None:
        check_resize(size, mode)
        workers = os.cpu_count() or 1 if workers is None else workers
        if max_pixels < 1 or workers < 1:
            raise ValueError(f"max_pixels and workers must be at least 1, not {max_pixels} and {workers}")
        build = _Build([os.fspath(path) for path in paths], size, mode, max_pixels, workers)
        stored = build.in_memory() if cache is None else build.cached(given_path(cache), verify=verify)
        reasons: dict[int, str] = {int(index): reason for index, reason in stored.description["reasons"].items()}
        self.mode, self._stored, self._size = mode, stored, size
        self.kept = tuple(index for index in range(len(paths)) if index not in reasons)
        self.skipped = tuple(f"{printable(build.paths[index])}: {reasons[index]}" for index in sorted(reasons))
        self._rows = np.array(self.kept, np.int64)
        self._original_sizes = np.array(stored.description["sizes"], np.int64).reshape(-1, 2)

    def select(self, indices: Sequence[int]) -> "ImageFiles":
        """The images of these indices, in this order, without copying them."""
        selected = object.__new__(ImageFiles)
        selected.__dict__.update(self.__dict__)
        selected._rows = self._rows[np.asarray(indices, np.int64)]
        selected.kept = tuple(selected._rows.tolist())
        return selected

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self._size

    @property
    def original_sizes(self) -> Int64[np.ndarray, "N 2"]:
        """Height and width of each upright image before it was resized."""
        return self._original_sizes[self._rows]

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the resized images."""
        digest = hashlib.sha256(json.dumps(["images", *self.size]).encode())
        digest.update(self._stored.digests[self._rows].tobytes())
        return digest.hexdigest()

    def digest(self, index: int) -> bytes:
        """The checksum of one image's pixels: equal for equal images."""
        return self._stored.digests[self._rows[index]].tobytes()

    def __len__(self) -> int:
        """The number of images."""
        return len(self._rows)

    def __call__(self, indices: Integer[np.ndarray, " B"] | Sequence[int]) -> UInt8[np.ndarray, "B Y X 3"]:
        """The images of these indices.

        Raises:
            IndexError: an index outside ``[0, len(self))``.
        """
        return np.asarray(self._stored.array[self._rows[checked_indices(indices, len(self))]])


def checked_indices(indices: Integer[np.ndarray, " B"] | Sequence[int], count: int) -> Integer[np.ndarray, " B"]:
    """The indices as an array.

    Raises:
        IndexError: an index outside ``[0, count)``.
    """
    chosen = np.asarray(indices, np.int64)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < count):
        raise IndexError(f"indices must lie in [0, {count}), not [{chosen.min()}, {chosen.max()}]")
    return chosen


class _Build:
    """Decodes all files, into memory or into a cache."""

    def __init__(
        self, paths: list[str], size: tuple[int, int], mode: ResizeMode, max_pixels: int, workers: int
    ) -> None:
        self.paths, self.size, self.mode, self.max_pixels, self.workers = paths, size, mode, max_pixels, workers
        self.shape = (len(paths), *size, 3)

    def in_memory(self) -> StoredArray:
        if (gigabytes := math.prod(self.shape) / 1e9) > LARGE:
            logger.warning("%d images take %.1f GB of memory without a cache folder", len(self.paths), gigabytes)
        images = np.zeros(self.shape, np.uint8)
        description = self.decode_into(images)
        return StoredArray(images, row_digests(images, workers=self.workers), description)

    def cached(self, folder: Path, *, verify: bool) -> StoredArray:
        """The cache, which is built if there is none, or none that fits."""
        where = [os.path.abspath(path) for path in self.paths]
        key = [where, self.size, self.mode, self.max_pixels]
        path = folder / f"images-{_hash(key)[:16]}.array"
        state = {"files": _hash([_state(path) for path in self.paths]), "Pillow": pillow_version()}
        try:
            stored = open_array_file(path, verify=verify)
            known = stored.description.get("state")
            changed = [name for name in state if not isinstance(known, dict) or known.get(name) != state[name]]
            if not changed and stored.array.shape == self.shape and "sizes" in stored.description:
                return stored
            reason = f"changed: {', '.join(changed)}" if changed else "the old one does not hold the files' sizes"
        except FileNotFoundError:
            reason = "there is none yet"
        except ArrayFileError as error:
            reason = f"the old one cannot be used: {error}"
        logger.warning("building the cache of %s images, %s: %s", f"{len(self.paths):,}", path, reason)
        description: dict[str, Any] = {"state": state}
        with new_array_file(path, self.shape, np.uint8, description) as images:
            description |= self.decode_into(images)
        return open_array_file(path, verify=False)

    def decode_into(self, images: np.ndarray | RowWriter) -> dict[str, Any]:
        """Writes every image into its row; the ``sizes`` of all originals, and ``reasons`` of rows without an image."""
        sizes = [(0, 0)] * len(self.paths)

        def decode(row: int) -> str | None:
            path = self.paths[row]
            try:
                images[row], sizes[row] = read_sized_image(path, self.size, mode=self.mode, max_pixels=self.max_pixels)
            except ImageError as error:
                return str(error)
            return None

        pillow_version()
        start, pool = time.monotonic(), ThreadPoolExecutor(self.workers)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"PIL\.")
                found = dict(enumerate(pool.map(decode, range(len(self.paths)))))
        finally:
            pool.shutdown(cancel_futures=True)
        reasons = {str(row): reason for row, reason in found.items() if reason is not None}
        seconds = time.monotonic() - start
        logger.info("decoded %d images in %.1f s; %d skipped", len(found) - len(reasons), seconds, len(reasons))
        return {"reasons": reasons, "sizes": sizes}


def _state(path: str) -> list[int] | None:
    """The kind, the size and the modification time of a file; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_mode, found.st_size, found.st_mtime_ns]


def _hash(key: Any) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
