"""Objects in the layout of COCO's instances, and detections in that of its results: read and written."""

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxseq.data.detection.corpus import DetectionCorpus, DetectionImages
from jaxseq.data.detection.found_objects import (
    Corners,
    DeclaredSize,
    FoundObject,
    FoundScenes,
    class_name,
    detection_options,
)
from jaxseq.data.images.found_files import ImageOptions, hash_part, is_below
from jaxseq.data.images.json_items import (
    Fault,
    Item,
    coco_annotations,
    coco_images,
    id_of,
    integer_of,
    items_of,
    list_of,
    read_document,
    shown,
    text_of,
)
from jaxseq.files import given_path, named_errors, write_atomic

PathPair = tuple[str | Path, str | Path]


def read_coco_instances(
    path: str | Path,
    folder: str | Path,
    *,
    held_out: PathPair | None = None,
    test: PathPair | None = None,
    images: ImageOptions | None = None,
    seed: int = 0,
) -> DetectionCorpus:
    """Read objects in the layout of COCO (``instances_train2017.json``) and the images in a folder.

        {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
         "categories": [{"id": 18, "name": "dog"}],
         "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "bbox": [x, y, w, h], "iscrowd": 0}]}

    ``x y`` is the upper left corner of a box in pixels of the upright image, counted from 0. ``width``, ``height`` and
    ``iscrowd`` may be missing, other fields are ignored; ids are integers or strings, and ``"1"`` is the id 1. Crowds
    are ``ignored``. Classes have the order of ``categories``; those of further files are matched by name.

    ``held_out`` is a second such file with its folder (``instances_val2017.json``), whose images are divided between
    the validation and the test part by their names and the seed; with ``test``, a third, all of them are in the
    validation part. All of ``path`` is for training then. Without both, a tenth of the images is in the test part and
    another in the validation part. An image that has the file name of one in another folder is named by its whole path.

    Skipped and named, with the path within the JSON: items with missing fields or wrong types, an id for a second
    time, an object of an unknown image or category, coordinates that are not finite, and what ``found_objects`` lists.
    A file name under a second id is the same image, a category's name under a second id the same class.

    Args:
        path: the JSON file, also with ``.gz``.
        folder: the folder of its images.
        held_out: a second JSON file with its folder.
        test: a third one.
        images: the preparation of images; ``pad`` or ``squash``, default ``pad`` to 224 x 224.
        seed: of the division.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no list ``images``, ``categories`` or ``annotations``, no usable image or class, ``test``
            without ``held_out``, or the mode ``crop``.
        ImportError: the extra ``images`` is not installed.
    """
    options = detection_options(images)
    if test is not None and held_out is None:
        raise ValueError("test needs held_out: without it there are no images to validate by")
    found, classes = FoundScenes(f"COCO instances {path}"), dict[str, None]()
    later = ("validation", "test")
    part = None if held_out is None else ("train",)
    _read(found, classes, given_path(path), given_path(folder), part=part, seed=seed)
    if held_out is not None:
        _read(found, classes, *map(given_path, held_out), part=later if test is None else later[:1], seed=seed)
    if test is not None:
        _read(found, classes, *map(given_path, test), part=later[1:], seed=seed)
    return found.corpus(options, list(classes), seed=seed)


def _read(
    found: FoundScenes, classes: dict[str, None], path: Path, folder: Path, *, part: Sequence[str] | None, seed: int
) -> None:
    """Add the images, the objects and the classes of one file; its new images are divided between the given parts."""
    document, known = read_document(path), set(found.images)
    categories = _categories(found, path, document)
    classes |= dict.fromkeys(categories.values())
    images = {}
    for key, place, item, image in coco_images(found, path, folder, document):
        images[key] = image
        try:
            if image is not None and ("width" in item or "height" in item):
                size = integer_of(item, "height", place), integer_of(item, "width", place)
                image.sizes.append(DeclaredSize(f"{path}: {place}", *size))
        except Fault as fault:
            found.skip(str(path), f"{fault}; the size of the file is taken")
    for place, item, image in coco_annotations(found, path, document, images, "bbox"):
        try:
            category = id_of(item, "category_id", place)
            if category not in categories:
                raise Fault(f"{place}.category_id: the unknown category {category}")
            instance = FoundObject(
                f"{path}: {place}.bbox", categories[category], _box(item, place), _crowd(item, place)
            )
        except Fault as fault:
            found.skip(str(path), str(fault))
        else:
            found.add(image, instance)
    for name in [name for name in found.images if name not in known] if part else []:
        found.images[name].part = hash_part(name, seed=seed, parts=part or ())


def _categories(found: FoundScenes, path: Path, document: Item) -> dict[str, str]:
    """The name of each category by its id."""
    categories: dict[str, str] = {}
    for place, item in items_of(found, path, document, "categories"):
        try:
            key, text = id_of(item, "id", place), text_of(item, "name", place)
            name = class_name(text)
            if name is None:
                raise Fault(f"{place}.name: not a name: {text[:80]!r}")
            if key in categories:
                raise Fault(f"{place}: the id {key} for a second time (name {name[:80]!r})")
        except Fault as fault:
            found.skip(str(path), str(fault))
            continue
        if name in categories.values():
            found.skip(str(path), f"{place}: the name {name!r} for a second time, with the id {key}: one class")
        categories[key] = name
    return categories


def _box(item: Item, place: str) -> Corners:
    """The corners of an item's ``bbox``."""
    x, y, w, h = coco_box(item, place)
    return x, y, x + w, y + h


def coco_box(item: Item, place: str) -> Corners:
    """The finite numbers x, y, w, h of an item's ``bbox``."""
    values = list_of(item, "bbox", place)
    place = f"{place}.bbox"
    if len(values) != 4:
        raise Fault(f"{place}: must be x, y, width and height, not {shown(values)}")
    x, y, w, h = (number(value, f"{place}[{index}]") for index, value in enumerate(values))
    return x, y, w, h


def number(value: Any, place: str) -> float:
    """A value that must be a finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise Fault(f"{place}: must be a number, not {shown(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise Fault(f"{place}: not finite: {shown(value)}")
    return result


def _crowd(item: Item, place: str) -> bool:
    if "iscrowd" not in item:
        return False
    crowd = integer_of(item, "iscrowd", place)
    if crowd not in (0, 1):
        raise Fault(f"{place}.iscrowd: must be 0 or 1, not {shown(crowd)}")
    return bool(crowd)


def write_coco_corpus(folder: str | Path, corpus: DetectionCorpus) -> dict[str, PathPair]:
    """Write a corpus as ``train.json``, ``validation.json`` and ``test.json`` with the images in ``images/``.

    Returns the JSON file and the folder of images of each part: ``read_coco_instances(*train, held_out=validation,
    test=test)`` reads the same images, names, objects and classes.

    Raises:
        ValueError, FileExistsError: as ``write_coco_instances``.
    """
    folder, pairs = given_path(folder), dict[str, PathPair]()
    for name, part in corpus.parts.items():
        pairs[name] = folder / f"{name}.json", folder / "images"
        write_coco_instances(*pairs[name], part, corpus.class_names)
    return pairs


def write_coco_instances(
    path: str | Path, folder: str | Path, images: DetectionImages, class_names: Sequence[str]
) -> None:
    """Write images as PNG files and their objects in the layout of COCO.

    Images and boxes are written as they are (a resized image in its new size). A file has the name of its image, with
    ``.png`` added if it has another suffix. Images have the ids 1, 2, ..., classes too, and ``ignored`` objects are
    crowds.

    Args:
        path: the JSON file.
        folder: the folder of the images, made if there is none.
        images: images and objects.
        class_names: the name of each class.

    Raises:
        ValueError: a name that is no path below the folder, or two names of one file.
        FileExistsError: one of the files exists; nothing is replaced.
        OSError: a file cannot be written; names it.
        ImportError: the extra ``images`` is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('PNG files need Pillow: pip install "jaxseq[images]"') from None
    path, folder = given_path(path), given_path(folder)
    names = [name if name.lower().endswith(".png") else f"{name}.png" for name in images.names]
    if len(set(names)) != len(names) or not all(map(is_below, names)):
        raise ValueError("names of images must differ, and be paths below the folder")
    for file in (path, *(folder / PurePosixPath(name) for name in names)):
        if os.path.lexists(file):
            raise FileExistsError(f"{file} exists")
    for index, name in enumerate(names):
        file = folder / PurePosixPath(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        Image.fromarray(np.asarray(images.images(np.array([index]))[0])).save(packed, "png")
        _write_new(file, packed.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(_document(images, names, class_names), allow_nan=False))


def _write_new(file: Path, content: bytes) -> None:
    """Write a file that must not exist; none is left if it fails."""
    with named_errors(file), file.open("xb") as opened:
        try:
            opened.write(content)
            opened.flush()
        except BaseException:
            file.unlink()
            raise


def _document(images: DetectionImages, names: Sequence[str], class_names: Sequence[str]) -> Item:
    height, width = images.images.size
    annotations: list[Item] = []
    for image, objects in enumerate(images.objects):
        for box, index, ignored in zip(*(array.tolist() for array in objects), strict=True):
            bbox = corners_to_coco(box)
            fields = {"id": len(annotations) + 1, "image_id": image + 1, "category_id": index + 1, "bbox": bbox}
            annotations.append(fields | {"area": bbox[2] * bbox[3], "iscrowd": int(ignored)})
    return {
        "images": [
            {"id": index + 1, "file_name": name, "width": width, "height": height} for index, name in enumerate(names)
        ],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(class_names)],
        "annotations": annotations,
    }


def corners_to_coco(box: Sequence[float]) -> list[float]:
    """x1 y1 x2 y2 as x, y, width, height."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
