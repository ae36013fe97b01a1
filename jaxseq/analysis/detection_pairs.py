"""Detections and objects of a corpus of images: checks, their pairs of equal image and class, and overlaps."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxseq.typing import Bool, Float, Int


class Found(NamedTuple):
    """The detections in one image: boxes ``x1 y1 x2 y2`` in continuous pixels, any finite scores, classes from 0."""

    boxes: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, " N"]
    classes: Int[np.ndarray, " N"]

    def above(self, score: int | float) -> "Found":
        """The detections with at least this score, in the order given."""
        kept = self.scores >= score
        return Found(self.boxes[kept], self.scores[kept], self.classes[kept])


@runtime_checkable
class ImageObjects(Protocol):
    """The objects in one image, as in ``data.detection.Objects``."""

    @property
    def boxes(self) -> np.ndarray:
        """Boxes ``[N 4]``, ``x1 y1 x2 y2`` in continuous pixels."""

    @property
    def classes(self) -> np.ndarray:
        """Classes ``[N]``, whole numbers from 0."""

    @property
    def ignored(self) -> np.ndarray:
        """Which objects need not be found ``[N]``: difficult ones of VOC, crowds of COCO."""


class Detections(NamedTuple):
    """The detections of all images; ``order`` sorts them by class, image and falling score, equal ones as given."""

    boxes: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, " N"]
    classes: Int[np.ndarray, " N"]
    images: Int[np.ndarray, " N"]
    order: Int[np.ndarray, " N"]


class Wanted(NamedTuple):
    """The objects of all images; ``order`` sorts them by class and image."""

    boxes: Float[np.ndarray, "N 4"]
    ignored: Bool[np.ndarray, " N"]
    classes: Int[np.ndarray, " N"]
    images: Int[np.ndarray, " N"]
    order: Int[np.ndarray, " N"]


def joined(
    found: Sequence[Found], objects: Sequence[ImageObjects], class_names: Sequence[str]
) -> tuple[Detections, Wanted]:
    """The detections and the objects of all images, in float64.

    Raises:
        ValueError: no images, no classes or two of one name, unequal numbers of images; arrays of other shapes than
            those of ``Found``; a box that is not finite, or with x2 < x1 or y2 < y1; a score that is not finite; or a
            class outside ``0..len(class_names) - 1``.
    """
    if isinstance(class_names, str) or not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(f"class names must be one or more, and different: {class_names!r}")
    if len(found) != len(objects):
        raise ValueError(f"detections of {len(found)} images, but objects of {len(objects)}")
    if not len(found):
        raise ValueError("no images to score")
    detections, wanted = [], []
    for i, (here, there) in enumerate(zip(found, objects, strict=True)):
        where = f"image {i}, detections"
        boxes, classes = _boxes(here.boxes, where), _classes(here.classes, len(class_names), where)
        scores = np.asarray(here.scores)
        _check_length(len(boxes), where, scores=scores, classes=classes)
        if not np.issubdtype(scores.dtype, np.number) or not np.isfinite(scores).all():
            raise ValueError(f"{where}: scores must be finite numbers, not {_first(scores, ~np.isfinite(scores))}")
        detections.append((boxes, scores.astype(np.float64), classes, np.full(len(boxes), i)))

        where = f"image {i}, objects"
        boxes, classes = _boxes(there.boxes, where), _classes(there.classes, len(class_names), where)
        ignored = np.asarray(there.ignored)
        _check_length(len(boxes), where, ignored=ignored, classes=classes)
        if ignored.dtype != np.bool_ and ignored.size:
            raise ValueError(f"{where}: ignored must be of dtype bool, not {ignored.dtype}")
        wanted.append((boxes, ignored.astype(np.bool_), classes, np.full(len(boxes), i)))
    boxes, scores, classes, images = (np.concatenate(parts) for parts in zip(*detections, strict=True))
    made = Detections(boxes, scores, classes, images, np.lexsort((-scores, images, classes)))
    boxes, ignored, classes, images = (np.concatenate(parts) for parts in zip(*wanted, strict=True))
    return made, Wanted(boxes, ignored, classes, images, np.lexsort((images, classes)))


def pairs(
    detections: Detections, wanted: Wanted, class_index: int
) -> Iterator[tuple[Int[np.ndarray, " D"], Int[np.ndarray, " G"]]]:
    """For each image with detections or objects of a class: their indices, in the order of ``order``."""
    ours = detections.order[_range(detections, class_index)]
    theirs = wanted.order[_range(wanted, class_index)]
    for image in np.union1d(detections.images[ours], wanted.images[theirs]).tolist():
        yield ours[where_equal(detections.images[ours], image)], theirs[where_equal(wanted.images[theirs], image)]


def overlaps(
    boxes: Float[np.ndarray, "D 4"], others: Float[np.ndarray, "G 4"], crowd: Bool[np.ndarray, " G"] | None = None
) -> Float[np.ndarray, "D G"]:
    """The intersection over union of each pair; over the area of the first box where the other is a crowd.

    A box without area has an overlap of 0 with anything.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    first, second = areas(boxes)[:, None], areas(others)[None]
    union = first + second - common
    if crowd is not None:
        union = np.where(crowd, first, union)
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def areas(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, " N"]:
    """The areas of boxes in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def where_equal(ascending: np.ndarray, value: int) -> slice:
    """The places of a value in an array in ascending order."""
    return slice(np.searchsorted(ascending, value, "left"), np.searchsorted(ascending, value, "right"))


def _range(items: Detections | Wanted, class_index: int) -> slice:
    return where_equal(items.classes[items.order], class_index)


def _boxes(given: np.ndarray, where: str) -> np.ndarray:
    boxes = np.asarray(given)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.issubdtype(boxes.dtype, np.number):
        raise ValueError(f"{where}: boxes are {boxes.dtype} {boxes.shape}, not numbers [N 4]")
    boxes = boxes.astype(np.float64)
    wrong = ~(np.isfinite(boxes).all(-1) & (boxes[:, 2:] >= boxes[:, :2]).all(-1))
    if wrong.any():
        raise ValueError(f"{where}: the box {_first(boxes, wrong)} is not finite with x1 <= x2 and y1 <= y2")
    return boxes


def _classes(given: np.ndarray, number: int, where: str) -> np.ndarray:
    classes = np.asarray(given)
    if not np.issubdtype(classes.dtype, np.integer) and classes.size:
        raise ValueError(f"{where}: classes must be whole numbers, not {classes.dtype}")
    wrong = (classes < 0) | (classes >= number)
    if wrong.any():
        raise ValueError(f"{where}: class {_first(classes, wrong)} of {number} classes")
    return classes.astype(np.int64)


def _check_length(number: int, where: str, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if array.shape != (number,):
            raise ValueError(f"{where}: {name} are {array.shape} for {number} boxes")


def _first(values: np.ndarray, wrong: np.ndarray) -> object:
    return values[wrong][0].tolist()
