"""The layouts of scenes, drawn for all images of a split at once: each is a pure function of its own index."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxseq.data.images.scene_captions import COLOURS, DIGITS, MAX_REFERENCES, RELATIONS, SIZES

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)

MARGIN = 1 / 16
"""Centres of two objects differ in their distances along both axes by at least this fraction of the image's side."""
FORMS = ((1.0, 0.0), *((width, slant) for width in (0.85, 1.0) for slant in (-0.25, 0.25)), (0.85, 0.0))
"""Width and slant of a digit: x - centre -> width (x - centre) + slant (y - centre); the first leaves it as it is."""
MAX_ATTEMPTS = 20_000
MAX_OBJECTS = 4
ONE_IN = 10
"""One in ten layouts, and one in ten digits, is in the validation part; as many are in the test part."""


@dataclass(frozen=True)
class SceneDesign:
    """The contents of scenes, and the number of their references."""

    objects: tuple[int, int] = (1, 2)
    """The least and the greatest number of digits in an image, 1 to 4."""
    size: int = 32
    """Height and width of an image in pixels."""
    digit_sizes: tuple[int, ...] = (13,)
    """Side of a digit in pixels: one, or two, which captions call small and large."""
    colours: int = 6
    """The number of colours, 1 to 8."""
    contrast: float = 0.35
    """The background is grey + contrast x (photograph - grey): 0 is a plain ground, 1 the photograph."""
    distorted: bool = True
    """Draw the digits of the training part also narrower and slanted (``FORMS``); the other parts keep them."""
    references: int = 2
    """Captions of an image: the first wording in both directions, then the second wording in both."""

    def __post_init__(self) -> None:
        low, high = self.objects
        if not 1 <= low <= high <= MAX_OBJECTS:
            raise ValueError(f"objects must be 1 <= least <= greatest <= {MAX_OBJECTS}, not {self.objects}")
        if not 1 <= len(self.digit_sizes) <= len(SIZES) or list(self.digit_sizes) != sorted(set(self.digit_sizes)):
            raise ValueError(f"digit_sizes must be one or two increasing sides, not {self.digit_sizes}")
        if not self.digit_sizes[0] >= 8 or not self.digit_sizes[-1] <= self.size:
            raise ValueError(f"digit_sizes must lie between 8 and the image's size {self.size}, not {self.digit_sizes}")
        if not 1 <= self.colours <= len(COLOURS):
            raise ValueError(f"colours must be 1 to {len(COLOURS)}, not {self.colours}")
        if not 0 <= self.contrast <= 1:
            raise ValueError(f"contrast must be in [0, 1], not {self.contrast}")
        if not 1 <= self.references <= MAX_REFERENCES:
            raise ValueError(f"references must be 1 to {MAX_REFERENCES}, not {self.references}")


class Layouts(NamedTuple):
    """The objects of N scenes in the order of their first captions; entries from ``number`` on have no meaning."""

    number: Int[np.ndarray, " N"]
    glyph: Int[np.ndarray, "N M"]  # indices of digit images
    form: Int[np.ndarray, "N M"]  # of FORMS
    digit: Int[np.ndarray, "N M"]  # their classes
    colour: Int[np.ndarray, "N M"]
    size: Int[np.ndarray, "N M"]
    corner: Int[np.ndarray, "N M 2"]  # y and x of the square that holds the digit
    box: Int[np.ndarray, "N M 4"]  # x1 y1 x2 y2 of what is visible of it
    relation: Int[np.ndarray, "N M"]  # of each object to the next; of a single object, its place


def draw_layouts(
    design: SceneDesign,
    classes: Int[np.ndarray, " glyphs"],
    extents: Int[np.ndarray, "sizes forms glyphs 4"],
    split: str,
    count: int,
    seed: int,
) -> Layouts:
    """The layouts of images 0 ... count - 1 of a split.

    The number of digits is drawn first. Then candidates are drawn uniformly and independently, and the first that is
    valid is taken. Valid are layouts of this split whose squares do not overlap, whose descriptions differ, and whose
    relations are clear (``MARGIN``).

    Raises:
        ValueError: an image for which no candidate of ``MAX_ATTEMPTS`` is valid.
    """
    part = SPLITS.index(split)
    glyphs = np.flatnonzero(part_of(np.arange(len(classes))) == part)
    pending, made = np.arange(count), None
    low, high = design.objects
    number = low + (uniform((seed, part, 2), pending, 1)[:, 0] * (high - low + 1)).astype(int)
    for attempt in range(MAX_ATTEMPTS):
        candidates, valid = _candidates(
            design, number[pending], glyphs, classes, extents, (seed, part, 3 + attempt), pending
        )
        valid &= part_of(_layout_ids(candidates)) == part
        if made is None:
            made = Layouts(*(field.copy() for field in candidates))
        else:
            for field, new in zip(made, candidates, strict=True):
                field[pending[valid]] = new[valid]
        pending = pending[~valid]
        if not len(pending):
            return made
    raise ValueError(
        f"no room: {MAX_ATTEMPTS} draws of {number[pending[0]]} digits of {design.digit_sizes} "
        f"pixels in an image of {design.size} gave no layout for the {split} image {pending[0]}"
    )


def part_of(ids: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """0, 1 or 2 (training, validation, test) for each id: a hash, with one in ten in each of the latter."""
    place = (uniform((0, 0, 0), ids, 1)[:, 0] * ONE_IN).astype(int)
    return np.where(place < 2, place + 1, 0)


def uniform(key: tuple[int, ...], indices: Int[np.ndarray, " N"], draws: int) -> Float[np.ndarray, "N draws"]:
    """Numbers in [0, 1), a hash of (key, index, number of the draw): SplitMix64 (Steele et al. 2014) in a chain."""
    state = np.zeros((1, 1), np.uint64)
    parts = [np.full((1, 1), part, np.int64).astype(np.uint64) for part in key]
    for part in [*parts, indices.astype(np.uint64)[:, None], np.arange(draws, dtype=np.uint64)[None]]:
        state = _mixed(state + part)
    return (state >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _candidates(
    design: SceneDesign,
    count: Int[np.ndarray, " N"],
    glyphs: Int[np.ndarray, " own"],
    classes: Int[np.ndarray, " glyphs"],
    extents: Int[np.ndarray, "sizes forms glyphs 4"],
    key: tuple[int, ...],
    indices: Int[np.ndarray, " N"],
) -> tuple[Layouts, Bool[np.ndarray, " N"]]:
    """One candidate for each index, its objects in order, and whether its geometry and descriptions are valid."""
    most = design.objects[1]
    u = uniform(key, indices, 6 * most).reshape(-1, most, 6)
    glyph, form, colour, size, y, x = np.moveaxis(u, -1, 0)
    sides = np.array(design.digit_sizes)
    size = (size * len(sides)).astype(int)
    side = sides[size]
    corner = (np.stack([y, x], axis=-1) * (design.size - side + 1)[..., None]).astype(int)
    glyph = glyphs[(glyph * len(glyphs)).astype(int)]
    form = (form * extents.shape[1]).astype(int)
    box = extents[size, form, glyph] + corner[..., [1, 0, 1, 0]]
    drawn = Layouts(count, glyph, form, classes[glyph], (colour * design.colours).astype(int), size, corner, box, size)
    real = np.arange(most) < count[:, None]
    centre = (box[..., :2] + box[..., 2:]) / 2  # x, y
    order = _order(centre, count, real)
    take = np.arange(len(indices))[:, None], order
    made = Layouts(count, *(field[take] for field in drawn[1:]))
    relation, clear = _relations(centre[take], count, design.size)
    real_pairs = np.triu(np.ones((most, most), bool), 1) & (real[:, :, None] & real[:, None, :])
    names = made.digit + len(DIGITS) * (made.colour + len(COLOURS) * made.size)
    fine = _disjoint(made.corner, sides[made.size]) & (names[:, :, None] != names[:, None])
    valid = clear & (fine | ~real_pairs).all((1, 2))
    return made._replace(relation=relation), valid


def _order(
    centre: Float[np.ndarray, "N M 2"], count: Int[np.ndarray, " N"], real: Bool[np.ndarray, "N M"]
) -> Int[np.ndarray, "N M"]:
    """From top to bottom; two objects that are further apart along x, from left to right."""
    key = centre[..., 1]
    if centre.shape[1] > 1:
        gap = np.abs(centre[:, 0] - centre[:, 1])
        across = (count == 2) & (gap[:, 0] > gap[:, 1])
        key = np.where(across[:, None], centre[..., 0], key)
    return np.argsort(np.where(real, key, np.inf), axis=1, kind="stable")


def _relations(
    centre: Float[np.ndarray, "N M 2"], count: Int[np.ndarray, " N"], size: int
) -> tuple[Int[np.ndarray, "N M"], Bool[np.ndarray, " N"]]:
    """Codes of ``RELATIONS`` (of ``PLACES`` for a single object), and whether they are clear."""
    margin, most = MARGIN * size, centre.shape[1]
    middle = centre[:, 0] - size / 2
    place = (middle[:, 0] > 0) + 2 * (middle[:, 1] > 0)
    relation = np.zeros((len(centre), most), int)
    clear = np.where(count == 1, (np.abs(middle) >= margin).all(1), True)
    for first in range(most - 1):
        step = centre[:, first + 1] - centre[:, first]
        dx, dy = np.abs(step[:, 0]), np.abs(step[:, 1])
        vertical, forward = dy > dx, np.where(dy > dx, step[:, 1], step[:, 0]) > 0
        relation[:, first] = np.where(vertical, 0, 1) + np.where(forward, 0, 2)
        fine = (np.abs(dx - dy) >= margin) & ((count == 2) | (dy >= margin))
        clear &= fine | (first + 1 >= count)
    relation[:, 0] = np.where(count == 1, place, relation[:, 0])
    return relation, clear


def _disjoint(corner: Int[np.ndarray, "N M 2"], side: Int[np.ndarray, "N M"]) -> Bool[np.ndarray, "N M M"]:
    """Whether the squares of each pair do not overlap."""
    end = corner + side[..., None]
    before = end[:, :, None] <= corner[:, None]
    return (before | before.swapaxes(1, 2)).any(-1)


def _layout_ids(layouts: Layouts) -> Int[np.ndarray, " N"]:
    """A number for the descriptions and relations of each scene.

    All that captions name is in it. A part of it would not do: if the classes of the digits alone decided the split, a
    model would learn that the combinations held out do not occur (measured: fewer digits right than by chance).
    """
    code, unused = layouts.number.astype(np.int64), len(RELATIONS)
    for place in range(layouts.digit.shape[1]):
        related = (place + 1 < layouts.number) | ((place == 0) & (layouts.number == 1))
        relation = np.where(related, layouts.relation[:, place], unused)
        description = (layouts.digit[:, place] * len(COLOURS) + layouts.colour[:, place]) * len(SIZES)
        name = (description + layouts.size[:, place]) * (unused + 1) + relation
        names = len(DIGITS) * len(COLOURS) * len(SIZES) * (unused + 1)
        code = code * names + np.where(place < layouts.number, name, 0)
    return code
