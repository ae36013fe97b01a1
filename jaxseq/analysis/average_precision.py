"""Average precision of detections as the Pascal VOC challenges define it, in NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jaxseq.analysis.detection_outcomes import UNCOUNTED, check_iou, voc_outcomes
from jaxseq.analysis.detection_pairs import Detections, Found, ImageObjects, Wanted, joined, overlaps, pairs
from jaxseq.typing import Float

VERSION = "average-precision.1"
Method = Literal["area", "11-point"]


@dataclass(frozen=True)
class ClassPrecision:
    """Precision and recall of one class after each detection that counts, in order of falling score.

    ``ap`` is None, and ``recall`` NaN, if no object of the class must be found. ``objects`` is their number,
    ``correct`` the number found.
    """

    name: str
    ap: float | None
    precision: Float[np.ndarray, " N"]
    recall: Float[np.ndarray, " N"]
    scores: Float[np.ndarray, " N"]
    objects: int
    correct: int


@dataclass(frozen=True)
class AveragePrecision:
    """``mean`` is that of the classes with objects, None if there are none; ``missing`` names the other classes."""

    mean: float | None
    classes: tuple[ClassPrecision, ...]
    missing: tuple[str, ...]
    signature: str


def average_precision(
    found: Sequence[Found],
    objects: Sequence[ImageObjects],
    class_names: Sequence[str],
    *,
    iou: int | float = 0.5,
    method: Method = "area",
) -> AveragePrecision:
    r"""Average precision of each class, and its mean (mAP), by the rules of the Pascal VOC challenges.

    The detections of a class in all images are taken in order of falling score, equal scores in the order given. Each
    is assigned to the object of its class and image with the largest intersection over union, the first of several. It
    is correct if that is at least ``iou`` and the object has not been found before. It does not count if the object is
    ignored (difficult). Otherwise it is wrong, a second detection of an object too. After n detections,

        precision = correct / n        recall = correct / objects        p(r) = max of precision where recall >= r

    ``"area"`` (VOC2010 and later) is the area under p; ``"11-point"`` (VOC2007) is its mean over r = 0, 0.1, ..., 1,
    where recall is compared with r in whole numbers, without rounding.

    Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge".

    Args:
        found: the detections of each image.
        objects: the objects of each image, in the same pixels.
        class_names: the name of each class.
        iou: the least intersection over union of a correct detection, above 0.
        method: ``"area"`` or ``"11-point"``.

    Raises:
        ValueError: an ``iou`` outside (0, 1], an unknown method, or detections, objects or names that do not fit
            (``detection_pairs.joined``): among these scores that are not finite, and classes without a name.
    """
    check_iou(iou)
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")
    detections, wanted = joined(found, objects, class_names)
    classes = tuple(
        _class_precision(detections, wanted, index, name, iou, method) for index, name in enumerate(class_names)
    )
    known = [made.ap for made in classes if made.ap is not None]
    terms = f"iou:{iou:g}|method:{method}|classes:{len(known)}|ties:in-order|scale:0-1|version:{VERSION}"
    return AveragePrecision(
        mean=float(np.mean(known)) if known else None,
        classes=classes,
        missing=tuple(made.name for made in classes if made.ap is None),
        signature=f"VOC-AP|{terms}",
    )


def _class_precision(
    detections: Detections, wanted: Wanted, class_index: int, name: str, iou: int | float, method: Method
) -> ClassPrecision:
    number, chosen, outcomes = 0, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for ours, theirs in pairs(detections, wanted, class_index):
        ignored = wanted.ignored[theirs]
        number += int((~ignored).sum())
        chosen.append(ours)
        outcomes.append(voc_outcomes(overlaps(detections.boxes[ours], wanted.boxes[theirs]), ignored, iou)[0])
    indices, outcome = np.concatenate(chosen), np.concatenate(outcomes)
    # by falling score; equal scores in the order given
    order = np.lexsort((indices, -detections.scores[indices]))
    order = order[outcome[order] != UNCOUNTED]
    correct = np.cumsum(outcome[order])
    precision = correct / np.arange(1, len(order) + 1)
    recall = correct / number if number else np.full(len(order), np.nan)
    area = _area if method == "area" else _eleven_points
    return ClassPrecision(
        name=name,
        ap=area(precision, correct, number) if number else None,
        precision=precision,
        recall=recall,
        scores=detections.scores[indices[order]],
        objects=number,
        correct=int(correct[-1]) if len(order) else 0,
    )


def _area(precision: np.ndarray, correct: np.ndarray, number: int) -> float:
    """The area under p(r): each correct detection adds p / number."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[np.diff(correct, prepend=0) == 1].sum() / number)


def _eleven_points(precision: np.ndarray, correct: np.ndarray, number: int) -> float:
    """The mean of p(r) over r = 0, 0.1, ..., 1."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[[np.searchsorted(10 * correct, point * number) for point in range(11)]].mean())
