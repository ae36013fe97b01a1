"""Average precision and recall of detections as COCO defines them, in NumPy or by one of COCO's libraries."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from jaxseq.analysis.coco_libraries import library_tables
from jaxseq.analysis.detection_pairs import Detections, Found, ImageObjects, Wanted, areas, joined, overlaps, pairs
from jaxseq.typing import Bool, Float, Int

VERSION = "coco-average-precision.1"
Implementation = Literal["numpy", "faster-coco-eval", "pycocotools"]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""Ranges of areas in square pixels, both ends included: all, small, medium, large."""


@dataclass(frozen=True)
class CocoScores:
    """COCO's scores of boxes in 0..1; None where no object counts (COCO's libraries write -1).

    All are means over IoU 0.50, 0.55, ..., 0.95, but ``ap50`` and ``ap75``, which are at one, and over the classes with
    objects. ``ar`` is the recall with at most that many detections of a class in an image; all other scores are with
    the greatest number. ``signature`` states how the scores were computed.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: dict[int, float | None]
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    class_ap: dict[str, float | None]
    class_ap50: dict[str, float | None]
    signature: str


def coco_average_precision(
    found: Sequence[Found],
    objects: Sequence[ImageObjects],
    class_names: Sequence[str],
    *,
    max_detections: Sequence[int] = (1, 10, 100),
    implementation: Implementation = "numpy",
) -> CocoScores:
    """COCO's average precision and recall of boxes.

    The detections of a class in an image are taken in order of falling score, equal scores in the order given. Each
    gets the object with the largest intersection over union among those that no detection has yet and that it
    overlaps by the threshold or more, the last of several; an ignored object only if there is no other. Ignored objects
    are COCO's crowds: the overlap is divided by the detection's area alone, any number of detections may get the same
    one, and these detections do not count. With precision p(r) as in ``average_precision``, AP is the mean of p(r)
    over r = 0, 0.01, ..., 1.

    For the scores by size, objects outside the range of areas do not count, nor do detections that get one of them, or
    none and lie outside themselves. The ranges are those of files' pixels: small to 32², medium to 96², large, and the
    area is the box's. COCO's own tables take an object's area from its mask, so scores by size differ from them.

    All implementations give the same numbers. ``"numpy"`` needs no extra and is the default, the others are COCO's
    original evaluation and a faster one.

    Lin et al. 2014, "Microsoft COCO: Common Objects in Context"; https://cocodataset.org/#detection-eval.

    Args:
        found: the detections of each image.
        objects: the objects of each image, in the same pixels.
        class_names: the name of each class.
        max_detections: increasing numbers of detections of a class in an image, best first.
        implementation: ``"numpy"``, ``"faster-coco-eval"`` (extra ``vision``) or ``"pycocotools"``.

    Raises:
        ValueError: numbers of detections that do not increase from 1 or more, an unknown implementation, or detections,
            objects or names that do not fit, as in ``average_precision``.
        ImportError: the library is not installed.
    """
    limits = tuple(max_detections)
    if not limits or limits[0] < 1 or any(low >= high for low, high in pairwise(limits)):
        raise ValueError(f"max_detections must be 1 or more and increase, not {limits}")
    if implementation not in get_args(Implementation):
        raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(get_args(Implementation))}")
    detections, wanted = joined(found, objects, class_names)
    if implementation == "numpy":
        precision, recall = _tables(detections, wanted, len(class_names), limits)
        version = VERSION
    else:
        sizes, ranges = (len(found), len(class_names)), (IOUS, RECALLS, AREAS)
        precision, recall, version = library_tables(implementation, detections, wanted, sizes, limits, ranges)
    return _scores(precision, recall, tuple(class_names), limits, version)


def _scores(
    precision: Float[np.ndarray, "T R K A"],
    recall: Float[np.ndarray, "T K A M"],
    names: tuple[str, ...],
    limits: tuple[int, ...],
    version: str,
) -> CocoScores:
    by_class = precision.mean(1)  # [T K A]
    counted, numbers = int(np.isfinite(by_class[0, :, 0]).sum()), ",".join(map(str, limits))
    terms = f"iou:0.50:0.95:0.05|recalls:101|max-dets:{numbers}|area:box|ignored:crowd|scale:0-1|version:{version}"
    return CocoScores(
        ap=_mean(by_class[:, :, 0]),
        ap50=_mean(by_class[0, :, 0]),
        ap75=_mean(by_class[5, :, 0]),
        ap_small=_mean(by_class[:, :, 1]),
        ap_medium=_mean(by_class[:, :, 2]),
        ap_large=_mean(by_class[:, :, 3]),
        ar={limit: _mean(recall[:, :, 0, index]) for index, limit in enumerate(limits)},
        ar_small=_mean(recall[:, :, 1, -1]),
        ar_medium=_mean(recall[:, :, 2, -1]),
        ar_large=_mean(recall[:, :, 3, -1]),
        class_ap={name: _mean(by_class[:, index, 0]) for index, name in enumerate(names)},
        class_ap50={name: _mean(by_class[:1, index, 0]) for index, name in enumerate(names)},
        signature=f"COCO-boxes|classes:{counted}|{terms}",
    )


def _mean(table: np.ndarray) -> float | None:
    """The mean over classes with objects; the others are NaN."""
    known = table[np.isfinite(table)]
    return float(known.mean()) if known.size else None


def _tables(
    detections: Detections, wanted: Wanted, classes: int, limits: tuple[int, ...]
) -> tuple[Float[np.ndarray, "T R K A"], Float[np.ndarray, "T K A M"]]:
    """Precision with the most detections and recall with each limit; NaN for a class without objects."""
    precision = np.full((len(IOUS), len(RECALLS), classes, len(AREAS)), np.nan)
    recall = np.full((len(IOUS), classes, len(AREAS), len(limits)), np.nan)
    for index in range(classes):
        number, ranks, correct, wrong = _class_outcomes(detections, wanted, index, limits[-1])
        for area in np.flatnonzero(number).tolist():
            for row, limit in enumerate(limits):
                recall[:, index, area, row] = correct[area][:, ranks < limit].sum(-1) / number[area]
            right, false = np.cumsum(correct[area], -1), np.cumsum(wrong[area], -1)
            # before the first detection that counts there is no precision: 0, as in COCO's libraries
            exact = right / np.maximum(right + false, 1)
            best = np.maximum.accumulate(exact[:, ::-1], -1)[:, ::-1]
            for row in range(len(IOUS)):
                places = np.searchsorted(right[row] / number[area], RECALLS)
                precision[row, :, index, area] = np.append(best[row], 0.0)[places]
    return precision, recall


def _class_outcomes(
    detections: Detections, wanted: Wanted, class_index: int, limit: int
) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " N"], Bool[np.ndarray, "A T N"], Bool[np.ndarray, "A T N"]]:
    """The number of objects by area, and of each detection by falling score: its rank in its image, right or wrong."""
    number = np.zeros(len(AREAS), np.int64)
    scores, ranks = [np.zeros(0)], [np.zeros(0, np.int64)]
    correct, wrong = ([np.zeros((len(AREAS), len(IOUS), 0), np.bool_)] for _ in range(2))
    for ours, theirs in pairs(detections, wanted, class_index):
        boxes, others, crowd = detections.boxes[ours[:limit]], wanted.boxes[theirs], wanted.ignored[theirs]
        ignored = crowd | _outside(others)
        number += (~ignored).sum(-1)
        matches = _matches(overlaps(boxes, others, crowd), crowd, ignored)
        # index -1 is that of no object: a detection without one counts by its own area
        padded = np.concatenate([ignored, np.zeros((len(AREAS), 1), np.bool_)], -1)
        uncounted = np.where(
            matches >= 0, padded[np.arange(len(AREAS))[:, None, None], matches], _outside(boxes)[:, None]
        )
        scores.append(detections.scores[ours[:limit]])
        ranks.append(np.arange(len(boxes)))
        correct.append((matches >= 0) & ~uncounted)
        wrong.append((matches < 0) & ~uncounted)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return (
        number,
        np.concatenate(ranks)[order],
        np.concatenate(correct, -1)[..., order],
        np.concatenate(wrong, -1)[..., order],
    )


def _matches(
    table: Float[np.ndarray, "D G"], crowd: Bool[np.ndarray, " G"], ignored: Bool[np.ndarray, "A G"]
) -> Int[np.ndarray, "A T D"]:
    """The object that each detection of an image gets, by area and IoU; -1 for none."""
    matches = np.full((len(ignored), len(IOUS), len(table)), -1)
    taken = np.zeros((len(ignored), len(IOUS), len(crowd)), np.bool_)
    for index in np.flatnonzero((table >= IOUS[0]).any(-1)).tolist():
        row = table[index]
        free = (row >= IOUS[:, None]) & (crowd | ~taken)
        counted = free & ~ignored[:, None]
        usable = np.where(counted.any(-1, keepdims=True), counted, free)
        best = row.size - 1 - np.where(usable, row, -1.0)[..., ::-1].argmax(-1)
        hit = usable.any(-1)
        matches[..., index] = np.where(hit, best, -1)
        area, iou = np.nonzero(hit)
        taken[area, iou, best[area, iou]] = True
    return matches


def _outside(boxes: Float[np.ndarray, "N 4"]) -> Bool[np.ndarray, "A N"]:
    """True for boxes outside of each range of areas."""
    size = areas(boxes)
    return np.array([(size < low) | (size > high) for low, high in AREAS])
