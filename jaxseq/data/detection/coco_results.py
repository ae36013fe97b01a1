"""Detections in the layout of COCO's results: written, and read back."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from jaxseq.data.detection.coco import coco_box, corners_to_coco, number
from jaxseq.data.detection.found_objects import class_name
from jaxseq.data.images.found_files import MAX_REASON
from jaxseq.data.images.json_items import Fault, id_of, object_of, read_document, read_json, shown, text_of
from jaxseq.files import given_path, write_output
from jaxseq.terminal import printable

Id = int | str

LARGEST = float(np.finfo(np.float32).max) / 4


class ScoredBoxes(NamedTuple):
    """The detections of one image: x1 y1 x2 y2, the score of each, and the index of its class."""

    boxes: Float32[np.ndarray, "N 4"]
    scores: Float32[np.ndarray, " N"]
    classes: Int32[np.ndarray, " N"]


@runtime_checkable
class AnyScoredBoxes(Protocol):
    """Anything with the attributes of ``ScoredBoxes``."""

    @property
    def boxes(self) -> Float[np.ndarray, "N 4"]:
        """x1 y1 x2 y2, in pixels of the file."""

    @property
    def scores(self) -> Float[np.ndarray, " N"]:
        """The score of each."""

    @property
    def classes(self) -> Int[np.ndarray, " N"]:
        """The class of each."""


@dataclass(frozen=True)
class CocoIds:
    """The ids that a file of instances gives: of images by their file names, of categories by their names."""

    images: dict[str, Id]
    categories: dict[str, Id]


class CocoResults(NamedTuple):
    """The detections of each image, and a message for each that could not be used."""

    found: tuple[ScoredBoxes, ...]
    skipped: tuple[str, ...]


def read_coco_ids(path: str | Path, folder: str | Path | None = None) -> CocoIds:
    """The ids in a file of instances; of a name with several ids the first. Items with faults are left out.

    With the ``folder`` of the images, they are also known by their whole paths.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not an object.
    """
    document, ids = read_document(given_path(path)), CocoIds({}, {})
    for list_name, field, known in (("images", "file_name", ids.images), ("categories", "name", ids.categories)):
        items, used = document.get(list_name), set()
        for value in items if isinstance(items, list) else []:
            try:
                item = object_of(value, list_name)
                key, name = id_of(item, "id", list_name), text_of(item, field, list_name)
            except Fault:  # named by read_coco_instances
                continue
            if key not in used:
                used.add(key)
                known.setdefault((class_name(name) or name) if field == "name" else name, item["id"])
    if folder is not None:
        known = {os.fspath(given_path(folder) / PurePosixPath(name)): key for name, key in ids.images.items()}
        return CocoIds(known | ids.images, ids.categories)
    return ids


def write_coco_results(
    path: str | Path,
    found: Sequence[AnyScoredBoxes],
    names: Sequence[str],
    class_names: Sequence[str],
    ids: CocoIds,
) -> None:
    """Write detections as a list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``.

    Args:
        path: the JSON file, written atomically; an older one is replaced.
        found: the detections of each image, in pixels of its file (``DetectionImages.to_original``).
        names: the names of these images.
        class_names: the name of each class.
        ids: the ids of images and categories (``read_coco_ids``).

    Raises:
        ValueError: another number of images than of names, an image or a class without an id, a class outside
            ``class_names``, a number that is not finite, or a folder as ``path``.
        OSError: the file cannot be written; names it.
    """
    if len(found) != len(names):
        raise ValueError(f"detections of {len(found)} images, but {len(names)} names")
    _check_known(names, class_names, ids)
    categories, results = [ids.categories[name] for name in class_names], []
    for name, (boxes, scores, classes) in zip(names, map(_lists, found), strict=True):
        for box, score, index in zip(boxes, scores, classes, strict=True):
            if not 0 <= index < len(categories):
                raise ValueError(f"{name!r}: classes must lie in [0, {len(categories)}), not {index}")
            if not np.isfinite([*box, score]).all():
                raise ValueError(f"{name!r}: not finite: the box {box} with the score {score}")
            fields = {"image_id": ids.images[name], "category_id": categories[index]}
            results.append(fields | {"bbox": corners_to_coco(box), "score": score})
    write_output(given_path(path), json.dumps(results, allow_nan=False))


def _check_known(names: Sequence[str], class_names: Sequence[str], ids: CocoIds) -> None:
    for wanted, known, what in ((names, ids.images, "image"), (class_names, ids.categories, "class")):
        for name in wanted:
            if name not in known:
                raise ValueError(f"the {what} {name!r} has no id")


def _lists(found: AnyScoredBoxes) -> tuple[list[list[float]], list[float], list[int]]:
    boxes, scores, classes = (np.asarray(array) for array in (found.boxes, found.scores, found.classes))
    return boxes.tolist(), scores.tolist(), classes.tolist()


def read_coco_results(path: str | Path, names: Sequence[str], class_names: Sequence[str], ids: CocoIds) -> CocoResults:
    """Read detections in the layout of COCO's results, for these images in this order.

    Skipped and named, with the path within the JSON: items with missing fields, wrong types or numbers that are not
    finite (as float32), a box of negative size, and an image or a category that is not among ``names`` or
    ``class_names``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, not a list, or an image or a class without an id.
    """
    path = given_path(path)
    document = read_json(path)
    if not isinstance(document, list):
        raise ValueError(f"{path}: the JSON must be a list, not {shown(document)}")
    _check_known(names, class_names, ids)
    rows = {str(ids.images[name]).strip(): row for row, name in enumerate(names)}
    categories = {str(ids.categories[name]).strip(): index for index, name in enumerate(class_names)}
    found: list[list[tuple[list[float], float, int]]] = [[] for _ in names]
    skipped = []
    for index, value in enumerate(document):
        place = f"[{index}]"
        try:
            item = object_of(value, place)
            image, category = id_of(item, "image_id", place), id_of(item, "category_id", place)
            for key, known, what in ((image, rows, "image"), (category, categories, "category")):
                if key not in known:
                    raise Fault(f"{place}: a detection of the unknown {what} {key}")
            x, y, w, h = coco_box(item, place)
            if "score" not in item:
                raise Fault(f"{place}.score: missing")
            score = number(item["score"], f"{place}.score")
            if max(map(abs, (x, y, w, h, score))) > LARGEST:
                raise Fault(f"{place}: a number that is not finite as float32")
            if w < 0 or h < 0:
                raise Fault(f"{place}.bbox: a box of negative size: {shown(item['bbox'])}")
        except Fault as fault:
            skipped.append(f"{printable(str(path))}: {printable(str(fault)[:MAX_REASON])}")
            continue
        found[rows[image]].append(([x, y, x + w, y + h], score, categories[category]))
    return CocoResults(tuple(map(_scored, found)), tuple(skipped))


def _scored(found: list[tuple[list[float], float, int]]) -> ScoredBoxes:
    return ScoredBoxes(
        np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in found], np.float32),
        np.array([index for _, _, index in found], np.int32),
    )
