"""Images with objects in boxes, and a corpus of three parts.

Boxes are ``x1 y1 x2 y2`` in continuous pixels (pixel i covers i to i + 1) of the images as their source gives them, all
of one size. ``DetectionImages`` maps them to the pixels of the original files and back.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64

from jaxseq.data.images.captioned import MAX_LISTED, ImageSource
from jaxseq.data.images.decoding import ResizeMode, placement

MAX_CLASSES_LISTED = 100
"""The number of classes whose objects a summary counts."""


class Objects(NamedTuple):
    """The objects of one image.

    Attributes:
        boxes: x1 y1 x2 y2 of each object, with an area above 0, inside the image.
        classes: the index of its class, from 0.
        ignored: objects that count neither as found nor as missed: crowds (COCO) and difficult ones (Pascal VOC).
    """

    boxes: Float32[np.ndarray, "N 4"]
    classes: Int32[np.ndarray, " N"]
    ignored: Bool[np.ndarray, " N"]


class DetectionImages(NamedTuple):
    """Images, the objects of each, a name for each, and the size of each file.

    Attributes:
        images: the images.
        objects: the objects of each, in pixels of ``images``.
        names: file names, or made up.
        original_sizes: height and width of each file; None if ``images`` are not resized.
        mode: how files were resized, ``pad`` or ``squash``.
    """

    images: ImageSource
    objects: tuple[Objects, ...]
    names: tuple[str, ...]
    original_sizes: Int64[np.ndarray, "N 2"] | None = None
    mode: ResizeMode = "pad"

    def to_input(self, index: int, boxes: Float[np.ndarray, "*N 4"]) -> Float[np.ndarray, "*N 4"]:
        """Boxes in pixels of the file of image ``index``, in pixels of ``images``: ``scale x box + corner``.

        Computed in float64, returned in the dtype of ``boxes``. Empty boxes (0 0 0 0) stay empty; nothing is clipped.
        """
        scale, corner = self.scale_and_corner(index)
        return _affine(boxes, scale, corner)

    def to_original(self, index: int, boxes: Float[np.ndarray, "*N 4"]) -> Float[np.ndarray, "*N 4"]:
        """Boxes in pixels of ``images``, in pixels of the file of image ``index``: ``(box - corner) / scale``.

        Computed in float64 and returned in the dtype of ``boxes``. Empty boxes (0 0 0 0) stay empty. Nothing is
        clipped: a box on the borders of a padded image lies outside of the file.
        """
        scale, corner = self.scale_and_corner(index)
        return _affine(boxes, 1 / scale, -corner / scale)

    def original_size(self, index: int) -> tuple[int, int]:
        """Height and width of the file of image ``index``.

        Raises:
            IndexError: an index outside ``[0, len(names))``.
        """
        if not 0 <= index < len(self.names):
            raise IndexError(f"index must lie in [0, {len(self.names)}), not {index}")
        if self.original_sizes is None:
            return self.images.size
        height, width = self.original_sizes[index].tolist()
        return height, width

    def scale_and_corner(self, index: int) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "4"]]:
        """The scale of each coordinate (x y x y) from the file to ``images``, and what is added after it."""
        original = self.original_size(index)
        place = placement(original, self.images.size, "squash" if self.original_sizes is None else self.mode)
        scale = np.array([place.width / original[1], place.height / original[0]] * 2)
        return scale, np.array([place.left, place.top] * 2, np.float64)


def _affine(boxes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    empty = (boxes == 0).all(-1, keepdims=True)
    return np.where(empty, 0, boxes * scale + offset).astype(boxes.dtype)


@dataclass(frozen=True)
class DetectionCorpus:
    """Images with objects to train on, to validate and to test.

    An image without objects is kept: all of it is background.

    Attributes:
        train: the images to train on.
        validation: the images to choose settings by.
        test: the images to report scores on.
        class_names: the name of each class.
        description: the origin of the images, in words.
        skipped: a message for each image or object that could not be used as it is (``place: reason``).
    """

    train: DetectionImages
    validation: DetectionImages
    test: DetectionImages
    class_names: tuple[str, ...]
    description: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check classes, names, objects and sizes.

        Raises:
            ValueError: no class or a class name for a second time; another number of images than of objects, names or
                sizes; a name for a second time; the mode ``crop``; objects that ``check_objects`` refuses.
        """
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"{self.description}: class names must be given and differ, not {self.class_names}")
        known: dict[str, str] = {}
        for part, found in self.parts.items():
            counts = [len(found.images), len(found.objects), len(found.names)]
            counts += [] if found.original_sizes is None else [len(found.original_sizes)]
            if len(set(counts)) > 1:
                words = "images, lists of objects, names and original sizes"
                raise ValueError(f"{self.description}: {part} holds unequal numbers of {words}: {counts}")
            if found.mode == "crop":
                raise ValueError(f"{self.description}: the {part} images are cropped: objects may be cut off")
            for name, objects in zip(found.names, found.objects, strict=True):
                if name in known:
                    raise ValueError(f"{self.description}: the {part} image {name!r} is also in {known[name]}")
                known[name] = part
                try:
                    check_objects(objects, found.images.size, len(self.class_names))
                except ValueError as error:
                    raise ValueError(f"{self.description}: the {part} image {name!r}: {error}") from None

    @property
    def parts(self) -> dict[str, DetectionImages]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256, in hex, of class names, and of fingerprints, names, sizes and objects of all parts, in order."""
        digest = hashlib.sha256()
        _add_texts(digest, self.class_names)
        for found in self.parts.values():
            digest.update(f"{found.images.fingerprint}\n{found.mode}\n".encode())
            _add_texts(digest, found.names)
            sizes = [found.original_size(index) for index in range(len(found.names))]
            arrays = [np.array(sizes, np.int64), *(array for objects in found.objects for array in objects)]
            for array in arrays:
                digest.update(f"{array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def summary(self) -> str:
        """Counts of images, of objects by class, of ignored objects and of what was skipped, sizes and hash."""
        lines = [f"images with objects: {self.description}"]
        for part, found in self.parts.items():
            counts, ignored = class_counts(found.objects, len(self.class_names))
            without = sum(not len(objects.boxes) for objects in found.objects)
            images = f"{len(found.images):,} images of {found.images.size[0]} x {found.images.size[1]}"
            lines.append(
                f"  {part}: {images} ({without:,} without objects), {counts.sum():,} objects, {ignored:,} ignored"
            )
            listed = list(zip(self.class_names, counts.tolist(), strict=True))
            texts = [f"{name} {count:,}" for name, count in listed[:MAX_CLASSES_LISTED]]
            texts += [f"and {len(listed) - MAX_CLASSES_LISTED:,} more classes"] * (len(listed) > MAX_CLASSES_LISTED)
            lines.append(f"    {', '.join(texts)}")
        lines.append(f"  sha256 {self.sha256}")
        if self.skipped:
            lines.append(f"  skipped: {len(self.skipped):,}")
            lines += [f"    {line}" for line in self.skipped[:MAX_LISTED]]
        if len(self.skipped) > MAX_LISTED:
            lines.append(f"    and {len(self.skipped) - MAX_LISTED:,} more")
        return "\n".join(lines)


def check_objects(objects: Objects, size: tuple[int, int], classes: int) -> None:
    """Check the objects of an image of this size (height, width).

    Raises:
        ValueError: other shapes or dtypes than those of ``Objects``, a class outside ``[0, classes)``, a box that is
            not finite, that has no area, or that is not inside the image.
    """
    boxes, indices, ignored = objects
    wanted = {"boxes": (boxes, "float32", 2), "classes": (indices, "int32", 1), "ignored": (ignored, "bool", 1)}
    for name, (array, dtype, rank) in wanted.items():
        if array.dtype != dtype or array.ndim != rank or len(array) != len(boxes):
            raise ValueError(f"{name} must be {dtype}, one for each object, not {array.dtype} of {array.shape}")
    if boxes.shape[1] != 4:
        raise ValueError(f"boxes must have 4 coordinates, not {boxes.shape[1]}")
    if len(boxes) and not (indices.min() >= 0 and indices.max() < classes):
        raise ValueError(f"classes must lie in [0, {classes}), not [{indices.min()}, {indices.max()}]")
    height, width = size
    inside = (
        (boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= np.array([width, height], np.float32))
    )
    for index in np.flatnonzero(~inside.all(1))[:1]:
        raise ValueError(
            f"object {index}: {boxes[index].tolist()} is no box x1 y1 x2 y2 of positive area inside "
            f"{height} x {width} pixels"
        )


def class_counts(objects: Sequence[Objects], classes: int) -> tuple[Int[np.ndarray, " classes"], int]:
    """The number of objects of each class that are not ignored, and the number of those that are."""
    indices = np.concatenate([np.zeros(0, np.int32), *(found.classes for found in objects)])
    ignored = np.concatenate([np.zeros(0, bool), *(found.ignored for found in objects)])
    return np.bincount(indices[~ignored], minlength=classes), int(ignored.sum())


def _add_texts(digest: "hashlib._Hash", texts: Sequence[str]) -> None:
    """Add texts, each with its length, to a digest."""
    digest.update(f"{len(texts)}\n".encode())
    for raw in (text.encode("utf-8", "surrogatepass") for text in texts):
        digest.update(f"{len(raw)}\n".encode() + raw)
