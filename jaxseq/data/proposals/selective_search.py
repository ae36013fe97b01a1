"""Selective search: object proposals by hierarchical grouping of regions (Uijlings et al., 2013)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32, Int, UInt8

from jaxseq.data.proposals.colour_spaces import ColourSpace, converted
from jaxseq.data.proposals.grouping import Similarities, grouped
from jaxseq.data.proposals.region_features import neighbours, pixel_bins, region_features
from jaxseq.data.proposals.segmentation import segmented, skimage_version, smoothed

Preset: TypeAlias = Literal["single", "fast", "quality"]
PRESETS: tuple[str, ...] = get_args(Preset)

PAPER_SIDE = 500
"""The published k, least pixels of a region (k) and least side of a box (20 px) are for images of this width. Smaller
images are not enlarged: the three shrink, by the rules in ``SelectiveSearch``, which were found by recall on scenes of
32, 64 and 128 px."""
PAPER_MIN_SIDE = 20.0

ALL = Similarities()
WITHOUT_COLOUR = Similarities(colour=False)
FILL = Similarities(colour=False, texture=False, size=False)
SIZE = Similarities(colour=False, texture=False, fill=False)


class Strategy(NamedTuple):
    """The runs of a preset: every combination of a colour space, a similarity and a k."""

    spaces: tuple[ColourSpace, ...]
    similarities: tuple[Similarities, ...]
    scales: tuple[float, ...]


STRATEGIES: dict[str, Strategy] = {
    "single": Strategy(("hsv",), (ALL,), (200,)),
    "fast": Strategy(("hsv", "lab"), (ALL, WITHOUT_COLOUR), (50, 100)),
    "quality": Strategy(
        ("hsv", "lab", "rgi", "hue", "intensity"), (ALL, WITHOUT_COLOUR, FILL, SIZE), (50, 100, 150, 300)
    ),
}


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective search (Uijlings et al., 2013)."""

    preset: Preset = "fast"
    """single: 1 run (HSV, k 200). fast: 8 runs (HSV and Lab, with and without the colour term, k 50 and 100). quality:
    80 runs (5 colour spaces, 4 similarities, k 50, 100, 150 and 300)."""
    scale: float | None = None
    """Factor on k. None: sqrt(r), where r is the side of the image, sqrt(Y X), divided by 500 and at most 1."""
    min_size: int | None = None
    """Least pixels of an initial region. None: k r, where k is that of the run before ``scale``."""
    min_side: float | None = None
    """Least width and height of a box in pixels. None: 20 r."""
    sigma: float = 0.8
    """Standard deviation in pixels of the Gaussian before the segmentation."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r}; known: {', '.join(PRESETS)}")
        for name in ("scale", "min_size", "min_side", "sigma"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < math.inf):
                raise ValueError(f"{name} must be finite and not negative, not {value}")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the boxes, beside the image and the seed; JSON."""
        return {"method": "selective search 1", **asdict(self), "skimage": skimage_version()}

    def boxes(self, image: UInt8[np.ndarray, "Y X C"], seed: int | Sequence[int]) -> Float32[np.ndarray, "N 4"]:
        """The proposals of an image (RGB, or C = 1: grey), best first; see ``selective_search``."""
        if image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
            raise ValueError(f"an image must be [Y X 3] or [Y X 1], not {list(image.shape)}")
        if image.dtype != np.uint8:
            raise ValueError(f"an image must be uint8, not {image.dtype}")
        y, x = image.shape[:2]
        rgb = image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)
        ranked = _ranked(self._runs(rgb), np.random.default_rng(seed))
        sides = ranked[:, 2:] - ranked[:, :2]
        min_side = PAPER_MIN_SIDE * _shrunk(y, x) if self.min_side is None else self.min_side
        kept = (sides >= min_side).all(1) | (sides == (x, y)).all(1)
        return ranked[kept].astype(np.float32)

    def _runs(self, image: UInt8[np.ndarray, "Y X 3"]) -> Iterator[Int[np.ndarray, "M 4"]]:
        """The boxes of each run, those of the largest unions first."""
        strategy = STRATEGIES[self.preset]
        shrunk = _shrunk(*image.shape[:2])
        scale = math.sqrt(shrunk) if self.scale is None else self.scale
        for space in strategy.spaces:
            channels = converted(image, space)
            bins, smooth = pixel_bins(channels), smoothed(channels, self.sigma)
            for k in strategy.scales:
                min_size = round(k * shrunk) if self.min_size is None else self.min_size
                labels = segmented(smooth, scale=k * scale, min_size=min_size)
                regions, pairs = region_features(bins, labels), neighbours(labels)
                for similarities in strategy.similarities:
                    yield grouped(regions, pairs, similarities)[::-1]


def selective_search(
    image: UInt8[np.ndarray, "Y X C"],
    preset: Preset = "fast",
    *,
    scale: float | int | None = None,
    min_size: int | None = None,
    min_side: float | int | None = None,
    sigma: float | int = 0.8,
    seed: int | Sequence[int] = 0,
) -> Float32[np.ndarray, "N 4"]:
    """Boxes that may hold an object, x1 y1 x2 y2 in continuous pixels, best first and all different.

    Each run of the preset segments the image in its colour space with its k (``segmentation.segmented``) and merges the
    two most similar neighbours until one region is left (``grouping.grouped``). The boxes of all regions and unions are
    proposals. That of the i-th region from the top of its hierarchy has the value i u with u uniform in [0, 1); the
    boxes of all runs are sorted by it. The box of the whole image is always among them.

    Args:
        image: RGB, 0 to 255, or one grey channel.
        preset: see ``SelectiveSearch``, as for the other options.
        scale: factor on the k of the preset.
        min_size: least pixels of an initial region.
        min_side: least width and height of a box in pixels.
        sigma: standard deviation in pixels of the smoothing before the segmentation.
        seed: the seed of the order.

    Raises:
        ValueError: an image or an option that cannot be used.
        ImportError: the extra ``images`` is not installed.

    Source: Uijlings, van de Sande, Gevers, Smeulders, "Selective search for object recognition" (IJCV 2013).
    """
    scale, min_side = (None if value is None else float(value) for value in (scale, min_side))
    return SelectiveSearch(preset, scale, min_size, min_side, float(sigma)).boxes(image, seed)


def _shrunk(y: int, x: int) -> float:
    """The side of the image against that of the paper's images; at most 1."""
    return min(1.0, math.sqrt(y * x) / PAPER_SIDE)


def _ranked(runs: Iterable[Int[np.ndarray, "M 4"]], random: np.random.Generator) -> Int[np.ndarray, "N 4"]:
    """The boxes of all runs in random order of priority, each once."""
    lists = list(runs)
    boxes = np.concatenate(lists)
    values = np.concatenate([np.arange(1, len(each) + 1) * random.random(len(each)) for each in lists])
    boxes = boxes[np.argsort(values, kind="stable")]
    codes = np.ravel_multi_index(tuple(boxes.T), tuple(boxes.max(0) + 1))  # faster to sort than rows
    _, first = np.unique(codes, return_index=True)
    return boxes[np.sort(first)]
