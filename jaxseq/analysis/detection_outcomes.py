"""Which detections are correct, and which objects were found."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxseq.analysis.detection_pairs import Found, ImageObjects, joined, overlaps, pairs
from jaxseq.typing import Bool, Float, Int

CORRECT, WRONG, UNCOUNTED = 1, 0, -1
"""Outcomes of a detection; one of an ignored object does not count."""


class Outcomes(NamedTuple):
    """Outcomes of the detections in one image, and which of its objects were found, in the order given."""

    detections: Int[np.ndarray, " N"]
    objects_found: Bool[np.ndarray, " M"]


def detection_outcomes(
    found: Sequence[Found],
    objects: Sequence[ImageObjects],
    class_names: Sequence[str],
    *,
    iou: int | float = 0.5,
) -> tuple[Outcomes, ...]:
    """For each image, which detections are correct by the rules of ``average_precision``.

    Raises:
        ValueError: as ``average_precision``.
    """
    check_iou(iou)
    detections, wanted = joined(found, objects, class_names)
    outcomes, reached = np.zeros(len(detections.images), np.int64), np.zeros(len(wanted.images), np.bool_)
    for index in range(len(class_names)):
        for ours, theirs in pairs(detections, wanted, index):
            table = overlaps(detections.boxes[ours], wanted.boxes[theirs])
            outcomes[ours], reached[theirs] = voc_outcomes(table, wanted.ignored[theirs], iou)
    ends = (np.searchsorted(items.images, np.arange(1, len(found))) for items in (detections, wanted))
    parts = (np.split(values, end) for values, end in zip((outcomes, reached), ends, strict=True))
    return tuple(Outcomes(*each) for each in zip(*parts, strict=True))


def voc_outcomes(
    table: Float[np.ndarray, "D G"], ignored: Bool[np.ndarray, " G"], iou: int | float
) -> tuple[Int[np.ndarray, " D"], Bool[np.ndarray, " G"]]:
    """Outcomes of one image's detections of a class, which fall in score, and which objects were found.

    A detection is assigned to the object of the largest overlap in its row of ``table``.
    """
    reached = np.zeros(len(ignored), np.bool_)
    if not len(ignored):
        return np.full(len(table), WRONG), reached
    best = table.argmax(-1)
    close = table.max(-1) >= iou
    outcome = np.where(close & ignored[best], UNCOUNTED, WRONG)
    candidates = np.flatnonzero(close & ~ignored[best])
    which, first = np.unique(best[candidates], return_index=True)
    outcome[candidates[first]] = CORRECT
    reached[which] = True
    return outcome, reached


def check_iou(iou: int | float) -> None:
    """Refuse a threshold outside (0, 1].

    Raises:
        ValueError: the threshold is outside.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be in (0, 1], not {iou}")
