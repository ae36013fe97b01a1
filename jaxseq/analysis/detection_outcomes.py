"""Outcomes of detections and objects, and the score of the best F1."""

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


class OperatingPoint(NamedTuple):
    """Precision, recall and F1 of the detections with at least this score, of all classes together."""

    score: float
    precision: float
    recall: float
    f1: float


def best_operating_point(
    found: Sequence[Found],
    objects: Sequence[ImageObjects],
    class_names: Sequence[str],
    *,
    iou: int | float = 0.5,
) -> OperatingPoint | None:
    """The score from which detections are taken for the largest F1 = 2 P R / (P + R); the highest of several.

    None without a correct detection.

    Raises:
        ValueError: as ``average_precision``.
    """
    outcomes = [one.detections for one in detection_outcomes(found, objects, class_names, iou=iou)]
    outcome = np.concatenate([np.zeros(0, np.int64), *outcomes])
    scores = np.concatenate([np.zeros(0), *(np.asarray(one.scores, np.float64) for one in found)])
    counted = outcome != UNCOUNTED
    order = np.argsort(-scores[counted], kind="stable")
    scores, correct = scores[counted][order], np.cumsum(outcome[counted][order] == CORRECT)
    number = sum(int((~np.asarray(one.ignored)).sum()) for one in objects)
    if not len(correct) or not correct[-1]:
        return None
    last = np.append(scores[1:] < scores[:-1], True)  # equal scores are taken together
    taken = np.arange(1, len(scores) + 1)
    f1 = np.where(last, 2 * correct / (taken + number), 0.0)
    best = int(f1.argmax())
    return OperatingPoint(
        float(scores[best]), float(correct[best] / taken[best]), float(correct[best] / number), float(f1[best])
    )


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
