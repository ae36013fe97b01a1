"""Recall of object proposals: the objects that they cover, against their number."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

COUNTS = (10, 30, 50, 100, 200, 300, 1000, 2000)
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5, 0.55, ..., 0.95."""


@runtime_checkable
class ObjectBoxes(Protocol):
    """The objects of an image: boxes x1 y1 x2 y2 in pixels, and which of them do not count."""

    @property
    def boxes(self) -> Float[np.ndarray, "N 4"]:
        """The boxes."""

    @property
    def ignored(self) -> Bool[np.ndarray, " N"]:
        """Crowds and difficult objects."""


class ProposalRecall(NamedTuple):
    """The recall of the first P proposals of each image, for several P."""

    counts: tuple[int, ...]
    """Numbers of proposals P."""
    thresholds: tuple[float, ...]
    """Least IoU of an object and a proposal."""
    recall: Float64[np.ndarray, "counts thresholds"]
    """The fraction of the objects that have a proposal of at least this IoU among the first P."""
    best_overlap: Float64[np.ndarray, " counts"]
    """The mean over the objects of the greatest IoU with one of the first P proposals."""
    num_objects: int
    """The number of objects that count."""

    @property
    def average_recall(self) -> Float64[np.ndarray, " counts"]:
        """The mean of ``recall`` over the thresholds."""
        return self.recall.mean(1)

    def at(self, count: int, threshold: float) -> float:
        """The recall of the first ``count`` proposals at a threshold.

        Raises:
            ValueError: the recall was not computed for this number or threshold.
        """
        if count not in self.counts or threshold not in self.thresholds:
            raise ValueError(
                f"no recall for {count} proposals at IoU {threshold}; known: {self.counts} and {self.thresholds}"
            )
        return float(self.recall[self.counts.index(count), self.thresholds.index(threshold)])


def proposal_recall(
    proposals: Sequence[Float[np.ndarray, "_ 4"]] | Float[np.ndarray, "B P 4"],
    objects: Sequence[ObjectBoxes],
    *,
    counts: Sequence[int] = COUNTS,
    thresholds: Sequence[float] = THRESHOLDS,
) -> ProposalRecall:
    """Recall of proposals at IoU thresholds, against the number of proposals of an image.

    All objects of all images weigh the same; ignored ones do not count, and an image without objects adds nothing. Two
    objects may be covered by the same proposal (Hosang et al., "What makes for effective detection proposals?", 2016).
    Empty boxes (padding, x1 y1 x2 y2 = 0 0 0 0) and boxes with NaN cover nothing.

    Args:
        proposals: for each image its proposals, best first, in the pixels of ``objects``.
        objects: for each image its objects.
        counts: numbers of proposals; one larger than an image has means all that it has.
        thresholds: IoU in (0, 1].

    Raises:
        ValueError: proposals of another number of images than the objects, no object that counts, no counts or
            thresholds, a count below 1, or a threshold outside (0, 1].
    """
    if len(proposals) != len(objects):
        raise ValueError(f"proposals of {len(proposals)} images, but objects of {len(objects)}")
    if not len(counts) or min(counts) < 1:
        raise ValueError(f"counts must be at least 1, not {tuple(counts)}")
    if not len(thresholds) or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds must lie in (0, 1], not {tuple(thresholds)}")
    numbers = np.asarray(counts, np.int64)
    best = np.concatenate(
        [np.zeros((0, len(numbers)))]
        + [
            _best_overlaps(np.asarray(found), np.asarray(each.boxes)[~np.asarray(each.ignored, bool)], numbers)
            for found, each in zip(proposals, objects, strict=True)
        ]
    )
    if not len(best):
        raise ValueError("no objects that count: recall is not defined")
    return ProposalRecall(
        counts=tuple(map(int, counts)),
        thresholds=tuple(map(float, thresholds)),
        recall=np.stack([(best >= threshold).mean(0) for threshold in thresholds], axis=1),
        best_overlap=best.mean(0),
        num_objects=len(best),
    )


def _best_overlaps(
    found: Float[np.ndarray, "P 4"], boxes: Float[np.ndarray, "N 4"], counts: Int[np.ndarray, " counts"]
) -> Float64[np.ndarray, "N counts"]:
    """The greatest IoU of each object with one of the first P proposals, for each P."""
    if not len(found) or not len(boxes):
        return np.zeros((len(boxes), len(counts)))
    overlaps = np.maximum.accumulate(_overlaps(boxes.astype(np.float64), found.astype(np.float64)), axis=1)
    return overlaps[:, np.minimum(counts, len(found)) - 1]


def _overlaps(a: Float64[np.ndarray, "N 4"], b: Float64[np.ndarray, "P 4"]) -> Float64[np.ndarray, "N P"]:
    """The IoU of all pairs; 0 where one is empty or not a number."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=(common > 0) & (union > 0))
