"""Scenes of real handwritten digits on real photographs, with captions and boxes; the layouts are made.

The digits are the 1,797 of scikit-learn (8 x 8 pixels, from the UCI optical recognition set), enlarged and coloured;
the backgrounds are crops of scikit-image's photographs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Integer, UInt8

from jaxseq.data.images.captioned import CaptionCorpus, CaptionedImages
from jaxseq.data.images.files import checked_indices
from jaxseq.data.images.scene_captions import COLOURS, DIGITS, PLACES, RELATIONS, SIZES, Description, captions_of
from jaxseq.data.images.scene_layouts import FORMS, SPLITS, Layouts, SceneDesign, Split, draw_layouts, uniform

RGB = np.array(
    [
        (235, 40, 40),
        (40, 200, 60),
        (60, 90, 255),
        (250, 220, 40),
        (250, 250, 250),
        (160, 50, 200),
        (255, 140, 20),
        (40, 220, 230),
    ],
    np.float32,
)
"""The colours of ``COLOURS``."""
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "camera", "immunohistochemistry", "brick", "grass"),
    "validation": ("rocket", "gravel"),
    "test": ("chelsea", "hubble_deep_field", "coins"),
}
"""The functions of ``skimage.data`` that give the backgrounds of each split."""
REDUCTIONS = (1, 2, 4)
"""A background is a crop of a photograph at full, half or a quarter of its resolution."""
GREY = 128.0
VISIBLE = 0.25
"""The opacity from which a pixel counts as part of a digit."""


class SceneObject(NamedTuple):
    """A digit of a scene; the box is x1 y1 x2 y2 in continuous pixels (pixel i covers i to i + 1)."""

    description: Description
    box: tuple[float, float, float, float]


class Scene(NamedTuple):
    """Objects in the order of the first caption, and the relation of each to the next (of a single one: its place)."""

    objects: tuple[SceneObject, ...]
    relations: tuple[str, ...]

    @property
    def descriptions(self) -> tuple[Description, ...]:
        """The descriptions of the objects."""
        return tuple(scene_object.description for scene_object in self.objects)


class SceneImages:
    """The images of one split: image i is a pure function of (design, split, seed, i).

    An object's box is the smallest box of whole pixels that holds every pixel in which the digit has an opacity of at
    least 1/4; its centre decides the relations. Objects do not overlap, and no two of a scene have the same
    description.

    Raises:
        ValueError: a count below 1, an unknown split, or a design without room for its objects.
        ImportError: the extra ``images`` is not installed.
    """

    def __init__(self, design: SceneDesign, split: Split, count: int, *, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}; known: {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"a split needs at least 1 image, not {count}")
        self.design, self.split, self.seed = design, split, seed
        glyphs = _glyphs()
        forms = FORMS if split == "train" and design.distorted else FORMS[:1]
        self._sides = {
            side: np.stack([enlarged(glyphs.opacity, side, *form) for form in forms]) for side in design.digit_sizes
        }
        extents = np.stack([[_extents(form) for form in opacity] for opacity in self._sides.values()])
        self.layouts: Layouts = draw_layouts(design, glyphs.classes, extents, split, count, seed)
        self._grounds = _grounds(split, design.contrast, design.size)
        self._crops = uniform((seed, SPLITS.index(split), 1), np.arange(count), 4)
        digest = hashlib.sha256(json.dumps(["scenes 2", asdict(design), split, count, seed]).encode())
        for array in [glyphs.opacity, glyphs.classes, *self._grounds]:
            digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.design.size, self.design.size

    def __len__(self) -> int:
        """The number of images."""
        return len(self.layouts.number)

    def __call__(self, indices: Integer[np.ndarray, " B"] | Sequence[int]) -> UInt8[np.ndarray, "B Y X 3"]:
        """The images of these indices.

        Raises:
            IndexError: an index outside ``[0, len(self))``.
        """
        chosen = checked_indices(indices, len(self))
        images = np.empty((len(chosen), *self.size, 3), np.uint8)
        for row, index in enumerate(chosen.tolist()):
            self._draw(images[row], index)
        return images

    def _draw(self, image: UInt8[np.ndarray, "Y X 3"], index: int) -> None:
        """Writes the background, then each digit over it."""
        ground, u = self._grounds[int(self._crops[index, 0] * len(self._grounds))], self._crops[index, 1:]
        side = self.design.size
        y, x = (int(u[axis] * (ground.shape[axis] - side + 1)) for axis in (0, 1))
        crop = ground[y : y + side, x : x + side]
        image[:] = crop if u[2] < 0.5 else crop[:, ::-1]
        layouts = self.layouts
        for place in range(int(layouts.number[index])):
            side = self.design.digit_sizes[layouts.size[index, place]]
            y, x = layouts.corner[index, place].tolist()
            opacity = self._sides[side][layouts.form[index, place], layouts.glyph[index, place], :, :, None]
            patch = image[y : y + side, x : x + side]
            patch[:] = patch + opacity * (RGB[layouts.colour[index, place]] - patch) + np.float32(0.5)

    def scene(self, index: int) -> Scene:
        """Objects, boxes and relations of one image."""
        layouts, named = self.layouts, len(self.design.digit_sizes) > 1
        count = int(layouts.number[index])
        objects = []
        for place in range(count):
            digit, colour = DIGITS[layouts.digit[index, place]], COLOURS[layouts.colour[index, place]]
            size = SIZES[layouts.size[index, place]] if named else None
            x1, y1, x2, y2 = map(float, layouts.box[index, place].tolist())
            objects.append(SceneObject(Description(digit, colour, size), (x1, y1, x2, y2)))
        codes = layouts.relation[index, : max(count - 1, 1)].tolist()
        return Scene(tuple(objects), tuple((PLACES if count == 1 else RELATIONS)[code] for code in codes))

    def captions(self) -> tuple[tuple[str, ...], ...]:
        """The references of every image."""
        scenes = (self.scene(index) for index in range(len(self)))
        return tuple(captions_of(scene.descriptions, scene.relations, self.design.references) for scene in scenes)


def scene_corpus(
    design: SceneDesign | None = None, *, train: int = 20_000, validation: int = 500, test: int = 1000, seed: int = 0
) -> CaptionCorpus:
    """Captioned scenes, in three parts that share no digit image, no photograph and no layout.

    The layout of a scene is all that its captions name: the digits with their colours and sizes, and the relations (or
    the place of a single digit). Every layout belongs to one part, whatever the seed: no caption of one part is a
    caption of another. ``images`` of each part is a ``SceneImages``, which knows the scenes.

    Raises:
        ValueError: a count below 1, or a design without room for its objects.
        ImportError: the extra ``images`` is not installed.
    """
    design = SceneDesign() if design is None else design

    def part(split: Split, count: int) -> CaptionedImages:
        images = SceneImages(design, split, count, seed=seed)
        return CaptionedImages(images, images.captions(), tuple(f"{split}/{index:06d}" for index in range(count)))

    low, high = design.objects
    number = str(low) if low == high else f"{low} to {high}"
    return CaptionCorpus(
        part("train", train),
        part("validation", validation),
        part("test", test),
        description=f"scenes of {number} handwritten digits (seed {seed})",
    )


class _Glyphs(NamedTuple):
    opacity: Float32[np.ndarray, "glyphs 8 8"]
    classes: Int[np.ndarray, " glyphs"]


@cache
def _glyphs() -> _Glyphs:
    """The digits of scikit-learn, opacities in [0, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('scenes need scikit-learn: pip install "jaxseq[images]"') from None
    digits: Any = load_digits()
    return _Glyphs((digits.images / 16).astype(np.float32), digits.target.astype(np.int64))


@cache
def _grounds(split: str, contrast: float, size: int) -> tuple[np.ndarray, ...]:
    """The photographs of a split at each reduction, blended with grey: uint8 RGB."""
    try:
        import skimage.data
    except ImportError:
        raise ImportError('scenes need scikit-image: pip install "jaxseq[images]"') from None
    grounds = []
    for name in PHOTOGRAPHS[split]:
        photograph = np.asarray(getattr(skimage.data, name)())
        if photograph.ndim == 2:
            photograph = np.repeat(photograph[..., None], 3, axis=-1)
        for factor in REDUCTIONS:
            y, x = (length // factor for length in photograph.shape[:2])
            if min(y, x) < size:
                continue
            blocks = photograph[: y * factor, : x * factor, :3].reshape(y, factor, x, factor, 3)
            small = blocks.mean((1, 3), dtype=np.float32)
            grounds.append((GREY + contrast * (small - GREY)).round().astype(np.uint8))
    if not grounds:
        raise ValueError(f"no photograph of the {split} part is as large as the image: size={size}")
    return tuple(grounds)


def enlarged(
    opacity: Float32[np.ndarray, "n y x"], side: int, width: float = 1.0, slant: float = 0.0
) -> Float32[np.ndarray, "n side side"]:
    """Square images enlarged by linear interpolation between the centres of pixels, in a form of ``FORMS``.

    The outer half of a border pixel repeats it; outside of the image the opacity falls to 0 within a pixel.
    """
    old = opacity.shape[1]
    y = (np.arange(side) + 0.5) * old / side - old / 2
    x = (y - slant * y[:, None]) / width

    def weights(centre: np.ndarray) -> np.ndarray:
        centre = centre + (old - 1) / 2
        centre = centre.clip(0, old - 1) + centre - centre.clip(-0.5, old - 0.5)
        return (1 - np.abs(centre[..., None] - np.arange(old))).clip(0).astype(np.float32)

    return np.einsum("ay,nyx,abx->nab", weights(y), opacity, weights(x), optimize=True)


def _extents(opacity: Float[np.ndarray, "n side side"]) -> Int[np.ndarray, "n 4"]:
    """The box x1 y1 x2 y2 of the visible pixels of each digit."""
    side = opacity.shape[1]
    columns, rows = ((opacity.max(axis) >= VISIBLE) for axis in (1, 2))
    first, last = ([part.argmax(1) for part in parts] for parts in ((columns, rows), (columns[:, ::-1], rows[:, ::-1])))
    return np.stack([*first, *(side - place for place in last)], axis=1)
