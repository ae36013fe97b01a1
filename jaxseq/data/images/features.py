"""Features of images by a frozen encoder, computed once and kept on disk."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from jaxseq.data.images.array_file import ArrayFileError, StoredArray, new_array_file, open_array_file
from jaxseq.data.images.batches import FingerprintedArrays
from jaxseq.data.images.files import checked_indices
from jaxseq.files import given_path

logger = logging.getLogger(__name__)


class FeatureCache:
    """The features of all images by a frozen encoder, as a memory-mapped array with random access by index.

    ``encode`` is called batch by batch, once; a later run opens the file if it fits: the fingerprint of the images,
    the SHA-256 of the weights and the encoder's fields. Several encoders may share a folder. A file that is cut or
    damaged (each row has a checksum) is computed again, and a message says why.

    Args:
        images: the images.
        encode: images [B Y X C] to features [B ...], as a NumPy array of floats; all calls have ``batch_size`` rows
            (the last rows of the last call are repeated images), so that a compiled function is compiled once.
        folder: the folder of the file.
        weights_sha256: identifies the weights.
        fields: the other settings of the encoder, as JSON.
        batch_size: B.
        verify: compare the file with its checksums when it is opened, which reads all of it.

    Raises:
        ValueError: ``batch_size`` below 1, no images, or features that are not floats, not finite, or of another
            number of rows than the images.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        images: FingerprintedArrays,
        encode: Callable[[np.ndarray], np.ndarray],
        folder: str | Path,
        *,
        weights_sha256: str,
        fields: Mapping[str, Any],
        batch_size: int = 32,
        verify: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if not len(images):
            raise ValueError("there are no images to encode")
        key = json.dumps(["features", images.fingerprint, len(images), weights_sha256, dict(fields)], sort_keys=True)
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()
        path = given_path(folder) / f"features-{self.fingerprint[:16]}.array"
        self._stored = self._opened(path, verify) or _computed(path, images, encode, batch_size, self.fingerprint)

    def _opened(self, path: Path, verify: bool) -> StoredArray | None:
        try:
            stored = open_array_file(path, verify=verify)
            if stored.description.get("fingerprint") == self.fingerprint:
                return stored
            reason = "the old one is of other features"
        except FileNotFoundError:
            reason = "there are none yet"
        except ArrayFileError as error:
            reason = f"the old ones cannot be used: {error}"
        logger.warning("computing the features %s: %s", path, reason)
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the features of one image."""
        return self._stored.array.shape[1:]

    def __len__(self) -> int:
        """The number of images."""
        return len(self._stored.array)

    def __call__(self, indices: Integer[np.ndarray, " B"]) -> Shaped[np.ndarray, "B *features"]:
        """The features of these images.

        Raises:
            IndexError: an index outside ``[0, len(self))``.
        """
        return np.asarray(self._stored.array[checked_indices(indices, len(self))])


def _computed(
    path: Path,
    images: FingerprintedArrays,
    encode: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    fingerprint: str,
) -> StoredArray:
    def batch(first: int) -> np.ndarray:
        rows = np.minimum(np.arange(first, first + batch_size), len(images) - 1)
        features = np.asarray(encode(np.asarray(images(rows))))
        if features.shape[:1] != (batch_size,):
            raise ValueError(f"features of shape {features.shape} for {batch_size} images")
        if features.dtype.kind != "f":
            raise ValueError(f"features must be floats that NumPy knows (float16, float32), not {features.dtype}")
        if not np.isfinite(features).all():
            raise ValueError(f"features of the images {first} to {rows[-1]} are not finite")
        return features

    first = batch(0)
    shape, description = (len(images), *first.shape[1:]), {"fingerprint": fingerprint}
    with new_array_file(path, shape, first.dtype, description) as rows:
        for start in range(0, len(images), batch_size):
            for row, values in enumerate(batch(start) if start else first, start):
                if row < len(images):
                    rows[row] = np.asarray(values)
    return open_array_file(path, verify=False)
