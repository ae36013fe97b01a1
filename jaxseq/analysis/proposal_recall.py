"""The share of objects that region proposals cover, against their number and the overlap wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxseq.analysis.detection_outcomes import check_iou
from jaxseq.analysis.detection_pairs import Found, ImageObjects, joined, overlaps, where_equal
from jaxseq.typing import Float

NUMBERS = (1, 3, 10, 30, 100, 300, 1000)
IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class ProposalRecall:
    """``recall[n, t]``: the share of ``objects`` objects with an overlap of ``ious[t]`` by one of ``numbers[n]``.

    ``mean_number`` is the mean number of proposals in an image.
    """

    numbers: tuple[int, ...]
    ious: tuple[float, ...]
    recall: Float[np.ndarray, "N T"]
    objects: int
    mean_number: float

    @property
    def average_recall(self) -> Float[np.ndarray, " N"]:
        """The mean of ``recall`` over ``ious``, for each number of proposals."""
        return self.recall.mean(1)

    def at(self, number: int, iou: float) -> float:
        """The recall of the first ``number`` proposals at a threshold.

        Raises:
            ValueError: the recall was not computed for this number or threshold.
        """
        if number not in self.numbers or iou not in self.ious:
            raise ValueError(f"no recall for {number} proposals at IoU {iou}; known: {self.numbers} and {self.ious}")
        return float(self.recall[self.numbers.index(number), self.ious.index(iou)])


def proposal_recall(
    proposals: Sequence[Float[np.ndarray, "_ 4"]] | Float[np.ndarray, "B P 4"],
    objects: Sequence[ImageObjects],
    *,
    numbers: Sequence[int] = NUMBERS,
    ious: Sequence[float] = IOUS,
) -> ProposalRecall:
    """Recall of region proposals, which know no classes: an object is covered if one proposal overlaps it enough.

    Ignored objects do not count; two objects may be covered by one proposal. The empty boxes 0 0 0 0 that pad lists of
    proposals are left out.

    Hosang et al. 2016, "What makes for effective detection proposals?".

    Args:
        proposals: the boxes of each image, best first.
        objects: the objects of each image, in the same pixels.
        numbers: increasing numbers of proposals, the first ones of each image.
        ious: increasing thresholds of the intersection over union.

    Raises:
        ValueError: no numbers or thresholds, some that do not increase, a number below 1, a threshold outside (0, 1],
            unequal numbers of images, a box that is not finite with x1 <= x2 and y1 <= y2, or no object that counts.
    """
    numbers, ious = tuple(numbers), tuple(float(iou) for iou in ious)
    for name, values in (("numbers", numbers), ("ious", ious)):
        if not values or sorted(set(values)) != list(values):
            raise ValueError(f"{name} must be one or more and increase, not {values}")
    if numbers[0] < 1:
        raise ValueError(f"numbers of proposals must be 1 or more, not {numbers[0]}")
    for iou in ious:
        check_iou(iou)
    detections, wanted = joined(
        [_ranked(boxes) for boxes in proposals], [_without_class(each) for each in objects], ["any"]
    )
    counted = np.flatnonzero(~wanted.ignored)
    if not counted.size:
        raise ValueError("no objects that count")
    # the best overlap of each object by the first n proposals of its image
    best = np.zeros((len(numbers), len(counted)))
    for image in np.unique(wanted.images[counted]).tolist():
        ours, theirs = where_equal(detections.images, image), where_equal(wanted.images[counted], image)
        table = overlaps(wanted.boxes[counted[theirs]], detections.boxes[ours])
        for row, number in enumerate(numbers):
            best[row, theirs] = table[:, :number].max(-1, initial=0.0)
    recall = (best[:, :, None] >= np.array(ious)).mean(1)
    return ProposalRecall(numbers, ious, recall, len(counted), len(detections.images) / len(proposals))


class _Boxes(NamedTuple):
    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray


def _ranked(boxes: np.ndarray) -> Found:
    """Proposals as detections of one class, without padding."""
    kept = boxes[(boxes != 0).any(-1)]
    return Found(kept, -np.arange(len(kept), dtype=np.float64), np.zeros(len(kept), np.int64))


def _without_class(objects: ImageObjects) -> _Boxes:
    return _Boxes(objects.boxes, np.zeros(len(objects.boxes), np.int64), objects.ignored)
