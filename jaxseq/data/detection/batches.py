"""Batches of images with objects and proposals: a pure function of the step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from jaxseq.data.batch import Rows, check_step, fingerprint_of, row_indices
from jaxseq.data.detection.corpus import Objects
from jaxseq.data.images.captioned import ImageSource
from jaxseq.data.proposals import ProposalSource


class DetectionBatch(NamedTuple):
    """Images, their objects, padded to a fixed number with empty boxes 0 0 0 0 (of class 0), and their proposals."""

    images: UInt8[np.ndarray, "B Y X 3"]
    boxes: Float32[np.ndarray, "B G 4"]
    classes: Int32[np.ndarray, "B G"]
    ignored: Bool[np.ndarray, "B G"]
    proposals: Float32[np.ndarray, "B P 4"]


class DetectionBatches:
    """Batches of images with their objects and proposals: a pure function of the step.

    The images of all epochs follow one another: an epoch contains every image exactly once, in the order of a
    permutation drawn from (seed, epoch). All batches are full: one at the end of an epoch holds the first images of the
    next.

    With ``flip``, each image is mirrored left-right with probability 1/2, drawn from (seed, epoch), and its boxes and
    proposals with it: ``x1 y1 x2 y2 -> X - x2, y1, X - x1, y2``. Mirrored digits and letters would be wrong.

    Args:
        images: the images, with a fingerprint.
        objects: the objects of each image, in its pixels.
        proposals: the proposals of each image, in its pixels; None for P = 0.
        batch_size: the number of images of a batch, B.
        seed: the seed of the order and of the flips.
        max_objects: G; default: the greatest number of objects of an image.
        flip: mirror half of the images.

    Raises:
        ValueError: fewer images than ``batch_size``, a ``batch_size`` below 1, another number of lists of objects or of
            proposals than of images, or an image with more than ``max_objects`` objects.
    """

    def __init__(
        self,
        images: ImageSource,
        objects: Sequence[Objects],
        proposals: ProposalSource | None,
        batch_size: int,
        *,
        seed: int = 0,
        max_objects: int | None = None,
        flip: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if len(images) != len(objects) or (proposals is not None and len(proposals) != len(images)):
            lists = "" if proposals is None else f" and proposals of {len(proposals)}"
            raise ValueError(f"{len(images)} images, but objects of {len(objects)}{lists}")
        if len(images) < batch_size:
            raise ValueError(f"a batch larger than the data: {batch_size} images, but there are only {len(images)}")
        counts = np.array([len(found.boxes) for found in objects])
        max_objects = int(counts.max()) if max_objects is None else max_objects
        if (most := int(counts.argmax())) >= 0 and counts[most] > max_objects:
            raise ValueError(f"image {most} has {counts[most]} objects, more than max_objects={max_objects}")
        self.images, self.proposals, self.batch_size = images, proposals, batch_size
        self.seed, self.max_objects, self.flip = seed, max_objects, flip
        self.steps_per_epoch = -(-len(images) // batch_size)
        self._boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes for found in objects)])
        self._classes = np.concatenate([np.zeros(0, np.int32), *(found.classes for found in objects)])
        self._ignored = np.concatenate([np.zeros(0, bool), *(found.ignored for found in objects)])
        self._counts, self._starts = counts, np.cumsum(counts) - counts
        self.fingerprint = fingerprint_of(
            "DetectionBatches",
            [self._boxes, self._classes, self._ignored, counts.astype(np.int64)],
            images=images.fingerprint,
            proposals=None if proposals is None else proposals.fingerprint,
            batch_size=batch_size,
            max_objects=max_objects,
            flip=flip,
            seed=seed,
        )
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, step: int, rows: Rows = None) -> DetectionBatch:
        """The batch of this step, or some of its rows."""
        drawn, mirrored = self._drawn(check_step(step) * self.batch_size + row_indices(rows, self.batch_size))
        images = np.asarray(self.images(drawn))
        boxes, classes, ignored = self._padded(drawn)
        if self.proposals is None:
            proposals = np.zeros((len(drawn), 0, 4), np.float32)
        else:
            proposals = np.asarray(self.proposals(drawn))
        if mirrored.any():
            where, width = mirrored[:, None, None], images.shape[2]
            images = np.where(where[..., None], images[:, :, ::-1], images)
            boxes = np.where(where, mirrored_boxes(boxes, width), boxes)
            proposals = np.where(where, mirrored_boxes(proposals, width), proposals)
        return DetectionBatch(images, boxes, classes, ignored, proposals)

    def _drawn(self, places: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
        """The images at these places in the order of all epochs, and whether each is mirrored."""
        epochs, places = np.divmod(places, len(self._counts))
        drawn = [self._epoch(epoch) for epoch in epochs.tolist()]
        rows = np.array([order[place] for (order, _), place in zip(drawn, places.tolist(), strict=True)])
        mirrored = np.array([flips[place] for (_, flips), place in zip(drawn, places.tolist(), strict=True)])
        return rows, mirrored

    def _epoch(self, epoch: int) -> tuple[Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """The order of the images in an epoch, and whether each is mirrored (two epochs are kept)."""
        if epoch not in self._epochs:
            random, count = np.random.default_rng((self.seed, epoch)), len(self._counts)
            drawn = random.permutation(count), (random.random(count) < 0.5) & self.flip
            kept = {other: self._epochs[other] for other in list(self._epochs)[-1:]}
            self._epochs = kept | {epoch: drawn}
            return drawn
        return self._epochs[epoch]

    def _padded(
        self, rows: Int[np.ndarray, " B"]
    ) -> tuple[Float32[np.ndarray, "B G 4"], Int32[np.ndarray, "B G"], Bool[np.ndarray, "B G"]]:
        """The boxes of these images, their classes, and whether they are ignored."""
        shape = len(rows), self.max_objects
        boxes, classes, ignored = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int32), np.zeros(shape, bool)
        for row, image in enumerate(rows.tolist()):
            count, start = self._counts[image], self._starts[image]
            boxes[row, :count] = self._boxes[start : start + count]
            classes[row, :count] = self._classes[start : start + count]
            ignored[row, :count] = self._ignored[start : start + count]
        return boxes, classes, ignored


def mirrored_boxes(boxes: Float32[np.ndarray, "*N 4"], width: int) -> Float32[np.ndarray, "*N 4"]:
    """Boxes in an image of this width, mirrored left-right; empty boxes (0 0 0 0) stay empty."""
    mirrored = np.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], axis=-1)
    return np.where((boxes == 0).all(-1, keepdims=True), np.float32(0), mirrored)
