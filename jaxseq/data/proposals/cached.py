"""Proposals of all images of a source: computed once by several processes, and kept on disk."""

import hashlib
import json
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Integer, UInt8

from jaxseq.data.images.array_file import ArrayFileError, StoredArray, new_array_file, open_array_file
from jaxseq.data.images.batches import FingerprintedArrays
from jaxseq.data.images.files import checked_indices
from jaxseq.files import given_path

logger = logging.getLogger(__name__)

CHUNK = 32
"""Images that a process is given at once."""
PROGRESS_SECONDS = 10.0


@runtime_checkable
class ProposalMethod(Protocol):
    """``SelectiveSearch``, ``SlidingWindows``, or anything like them that can be pickled."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the boxes, beside the image and the seed; JSON."""

    def boxes(self, image: UInt8[np.ndarray, "Y X C"], seed: int | Sequence[int], /) -> Float32[np.ndarray, "N 4"]:
        """The proposals of an image, best first: x1 y1 x2 y2 in continuous pixels."""


@runtime_checkable
class ProposalSource(Protocol):
    """Proposals by index, as many for each image."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of everything that determines the proposals."""

    def __len__(self) -> int:
        """The number of images."""

    def __call__(self, indices: Integer[np.ndarray, " B"]) -> Float32[np.ndarray, "B P 4"]:
        """The proposals of these images, best first, padded with empty boxes 0 0 0 0."""


class Proposals:
    """The first P proposals of every image by one method, as a memory-mapped array with random access by index.

    They are computed once; a later run opens the file if it fits: the fingerprint of the images, the settings of the
    method, P and the seed. A file that is cut or damaged (each row has a checksum) is computed again, and a message
    says why. The boxes of an image are those of ``method.boxes(image, seed)``, whatever its index.

    Several methods and sources may share a folder. More than one process is started for more than ``CHUNK`` images
    only. As the processes import the main module anew, a script that makes this object must do so below
    ``if __name__ == "__main__":``, or with ``workers=1``.

    Args:
        images: the images.
        method: what proposes.
        folder: the folder of the file.
        count: P, the number of boxes of an image.
        seed: the seed of the method's random numbers.
        workers: the number of processes; None: as many as the CPUs that this process may use.
        verify: compare the file with its checksums when it is opened, which reads all of it.

    Raises:
        ValueError: ``count`` or ``workers`` below 1, no images, or boxes that are not finite or outside the image.
        OSError: the file cannot be written.
        RuntimeError: a process ended abruptly.
    """

    def __init__(
        self,
        images: FingerprintedArrays,
        method: ProposalMethod,
        folder: str | Path,
        *,
        count: int = 300,
        seed: int = 0,
        workers: int | None = None,
        verify: bool = True,
    ) -> None:
        if count < 1 or (workers is not None and workers < 1):
            raise ValueError(f"count and workers must be at least 1, not {count} and {workers}")
        if not len(images):
            raise ValueError("there are no images to propose boxes for")
        fields = ["proposals 2", images.fingerprint, len(images), method.settings, count, seed]
        self.fingerprint = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        path = given_path(folder) / f"proposals-{self.fingerprint[:16]}.array"
        stored = self._opened(path, verify)
        if stored is None:
            _compute(path, images, method, count, seed, workers or _cpus(), self.fingerprint)
            stored = open_array_file(path, verify=False)
        self._stored = stored

    def _opened(self, path: Path, verify: bool) -> StoredArray | None:
        try:
            stored = open_array_file(path, verify=verify)
            if stored.description.get("fingerprint") == self.fingerprint:
                return stored
            reason = "the old file is of other proposals"
        except FileNotFoundError:
            reason = "there are none yet"
        except ArrayFileError as error:
            reason = f"the old ones cannot be used: {error}"
        logger.warning("computing the proposals %s: %s", path, reason)
        return None

    @property
    def count(self) -> int:
        """P, the number of boxes of an image, padding included."""
        return self._stored.array.shape[1]

    def __len__(self) -> int:
        """The number of images."""
        return len(self._stored.array)

    def __call__(self, indices: Integer[np.ndarray, " B"] | Sequence[int]) -> Float32[np.ndarray, "B P 4"]:
        """The proposals of these images, best first, padded with empty boxes 0 0 0 0.

        Raises:
            IndexError: an index outside ``[0, len(self))``.
        """
        return np.asarray(self._stored.array[checked_indices(indices, len(self))])


def padded_boxes(boxes: Float[np.ndarray, "N 4"], count: int) -> Float32[np.ndarray, "P 4"]:
    """The first ``count`` boxes, padded with empty boxes 0 0 0 0 if there are fewer."""
    padded = np.zeros((count, 4), np.float32)
    padded[: len(boxes)] = boxes[:count]
    return padded


def _compute(
    path: Path,
    images: FingerprintedArrays,
    method: ProposalMethod,
    count: int,
    seed: int,
    workers: int,
    fingerprint: str,
) -> None:
    """Write the file."""
    start = reported = time.monotonic()
    done = 0
    with new_array_file(path, (len(images), count, 4), np.float32, {"fingerprint": fingerprint}) as rows:
        for chunk in _chunks(images, method, count, seed, workers):
            for values in chunk:
                rows[done] = values
                done += 1
            now = time.monotonic()
            if now - reported > PROGRESS_SECONDS or done == len(images):
                reported = now
                logger.info("proposals: %d of %d images, %.1f a second", done, len(images), done / (now - start))


def _chunks(
    images: FingerprintedArrays, method: ProposalMethod, count: int, seed: int, workers: int
) -> Iterator[Float32[np.ndarray, "B P 4"]]:
    """The proposals of all images, some at a time, in order."""
    starts = range(0, len(images), CHUNK)

    def arguments(start: int) -> tuple[np.ndarray, ProposalMethod, int, int, int]:
        rows = np.arange(start, min(start + CHUNK, len(images)))
        return np.asarray(images(rows)), method, count, seed, start

    if min(workers, len(starts)) == 1:
        for start in starts:
            yield _of_images(*arguments(start))
        return
    waiting: deque[Future[np.ndarray]] = deque()
    # new processes, not forked ones: JAX has threads
    with ProcessPoolExecutor(min(workers, len(starts)), multiprocessing.get_context("spawn")) as pool:
        try:
            for start in starts:
                waiting.append(pool.submit(_of_images, *arguments(start)))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            advice = 'is the main module guarded by `if __name__ == "__main__":`? workers=1 needs no processes'
            raise RuntimeError(f"a process that computes proposals ended abruptly: {advice}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _of_images(
    images: UInt8[np.ndarray, "B Y X C"], method: ProposalMethod, count: int, seed: int, start: int
) -> Float32[np.ndarray, "B P 4"]:
    """The padded proposals of some images, of which the first has the index ``start``."""
    return np.stack([_checked(image, method, count, seed, index) for index, image in enumerate(images, start)])


def _checked(
    image: UInt8[np.ndarray, "Y X C"], method: ProposalMethod, count: int, seed: int, index: int
) -> Float32[np.ndarray, "P 4"]:
    boxes = method.boxes(image, seed)
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= image.shape[1::-1]).all(1)
    valid = inside & (boxes[:, :2] < boxes[:, 2:]).all(1)
    if not valid.all():
        place = int(np.argmin(valid))
        raise ValueError(f"proposal {place} of image {index} is not a box inside the image: {boxes[place].tolist()}")
    return padded_boxes(boxes, count)


def _cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
