"""From lists of files and objects to a corpus: what all readers of objects share.

Boxes are given in pixels of the files. Skipped and named: a box without area, before or after it is resized, and a box
outside the image; what lies outside of a box that is partly outside is cut off and named (an excess of up to
``ROUNDING`` is cut off without a message). An image whose file gives another size than the reader was told is skipped
and named, with its objects, since its boxes cannot be trusted. Images without objects are kept. The rest is as in
``images.found_files``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxseq.data.detection.corpus import DetectionCorpus, DetectionImages, Objects
from jaxseq.data.images.files import ImageFiles
from jaxseq.data.images.found_files import FoundFile, FoundFiles, ImageOptions, has_surrogates

logger = logging.getLogger(__name__)

ROUNDING = 0.01
"""In pixels: the rounding of coordinates in COCO's files."""

Corners = tuple[float, float, float, float]


class FoundObject(NamedTuple):
    """An object of a file: where it stands, its class, its box in pixels of the image file, and ``Objects.ignored``."""

    place: str
    class_name: str
    box: Corners
    ignored: bool


class DeclaredSize(NamedTuple):
    """The size of an image according to another file, and where it stands there."""

    place: str
    height: int
    width: int


@dataclass
class FoundScene(FoundFile):
    """An image file with its objects, and the sizes that it should have."""

    objects: list[FoundObject] = field(default_factory=list)
    sizes: list[DeclaredSize] = field(default_factory=list)


class FoundScenes(FoundFiles[FoundScene]):
    """The images and objects that a reader has found, and what it has skipped."""

    def new(self, path: str) -> FoundScene:
        """An image without objects."""
        return FoundScene(path)

    def add(self, image: FoundScene, found: FoundObject) -> None:
        """Add an object, or name it if its box has no area."""
        x1, y1, x2, y2 = found.box
        if x2 > x1 and y2 > y1:
            image.objects.append(found)
        else:
            self.skip(found.place, f"a box without area: {written(found.box)} (x1 y1 x2 y2)")

    def corpus(self, options: ImageOptions, class_names: Sequence[str], *, seed: int) -> DetectionCorpus:
        """The corpus of all images that can be read.

        An image without a part is in the one that ``hash_part`` gives.

        Raises:
            ValueError: no class, or no image is left (names what was skipped first).
        """
        files = options.read([image.path for image in self.images.values()])
        self.skipped += files.skipped
        every = list(self.images)
        files = files.select([row for row, index in enumerate(files.kept) if self._fits(files, row, every[index])])
        names = [every[index] for index in files.kept]
        if not names or not class_names:
            what, first = "class" if names else "image", "".join(f"; {line}" for line in self.skipped[:1])
            raise ValueError(f"{self.description}: no usable {what}; {len(self.skipped)} skipped{first}")
        indices, chosen = {name: index for index, name in enumerate(class_names)}, self.divide(files, names, seed)

        def part(name: str) -> DetectionImages:
            own, images = tuple(names[index] for index in chosen[name]), files.select(chosen[name])
            empty = DetectionImages(images, (), own, images.original_sizes, options.mode)
            objects = tuple(self._objects(empty, index, indices) for index in range(len(own)))
            return empty._replace(objects=objects)

        train, validation, test = (part(name) for name in ("train", "validation", "test"))
        corpus = DetectionCorpus(
            train, validation, test, tuple(class_names), self.description, skipped=tuple(self.skipped)
        )
        logger.info("%s", corpus.summary())
        return corpus

    def _fits(self, files: ImageFiles, row: int, name: str) -> bool:
        """Whether an image has the sizes that it should have; named if not."""
        height, width = files.original_sizes[row].tolist()
        for size in self.images[name].sizes:
            if (size.height, size.width) != (height, width):
                self.skip(
                    size.place,
                    f"the size {size.width} x {size.height}, but upright {name} has {width} x {height}: "
                    f"skipped with {len(self.images[name].objects)} objects",
                )
                return False
        return True

    def _objects(self, images: DetectionImages, index: int, classes: dict[str, int]) -> Objects:
        """The objects of an image, in the pixels of the resized image."""
        height, width = images.original_size(index)
        found, boxes = [], []
        for item in self.images[images.names[index]].objects:
            box = self._clipped(item, height, width)
            if box is not None:
                found.append(item)
                boxes.append(box)
        rows = np.array(boxes, np.float64).reshape(-1, 4)
        resized = _inside(images.to_input(index, rows), images.images.size)
        real = np.all(resized[:, 2:] > resized[:, :2], axis=1)
        for row in np.flatnonzero(~real).tolist():
            self.skip(found[row].place, f"a box without area in the resized image: {written(boxes[row])} (x1 y1 x2 y2)")
        kept = [item for item, keep in zip(found, real.tolist(), strict=True) if keep]
        return Objects(
            resized[real],
            np.array([classes[item.class_name] for item in kept], np.int32),
            np.array([item.ignored for item in kept], bool),
        )

    def _clipped(self, item: FoundObject, height: int, width: int) -> Corners | None:
        """The part of a box that is inside the image; None, and named, if there is none."""
        x1, y1, x2, y2 = item.box
        clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            reason = f"a box outside of the image of {width} x {height} pixels: {written(item.box)} (x1 y1 x2 y2)"
            self.skip(item.place, reason)
            return None
        if max(abs(old - new) for old, new in zip(item.box, clipped, strict=True)) > ROUNDING:
            reason = f"a box partly outside of the image of {width} x {height} pixels, cut off there"
            self.skip(item.place, f"{reason}: {written(item.box)} (x1 y1 x2 y2)")
        return clipped


def detection_options(options: ImageOptions | None) -> ImageOptions:
    """The options given, or those with the mode ``pad``.

    Raises:
        ValueError: the mode ``crop``, which cuts objects off.
    """
    options = ImageOptions(mode="pad") if options is None else options
    if options.mode == "crop":
        raise ValueError("the resize mode 'crop' cuts objects off; use pad or squash")
    return options


def class_name(text: str) -> str | None:
    """A name with runs of white space replaced by one space; None if nothing is left, or it is not valid Unicode."""
    name = " ".join(text.split())
    return None if not name or has_surrogates(name) else name


def written(box: Corners) -> str:
    """The coordinates of a box in a message."""
    return " ".join(f"{value:.6g}" for value in box)


def _inside(boxes: Float64[np.ndarray, "N 4"], size: tuple[int, int]) -> np.ndarray:
    """Boxes in float32, cut off at the borders, which the rounding of the scale may have put them beyond."""
    height, width = size
    return np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
