"""Proposals that do not look at the image: sliding windows, and objects moved and scaled at random."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

MOST_WINDOWS = 10_000_000
"""Of one shape in an image."""


def sliding_windows(
    size: tuple[int, int],
    sides: Sequence[float | int],
    aspect_ratios: Sequence[float | int] = (1.0,),
    stride: float | int = 0.5,
) -> Float32[np.ndarray, "N 4"]:
    """Windows on regular grids, inside an image of height Y and width X; all different, in the order of ``sides``.

    A window of side s and aspect ratio r is s sqrt(r) wide and s / sqrt(r) high, or as large as the image along an axis
    on which it would not fit. Windows of one shape are evenly spaced from border to border, at most ``stride`` of their
    width and height apart.

    Args:
        size: Y and X in pixels.
        sides: the roots of the windows' areas in pixels.
        aspect_ratios: widths divided by heights.
        stride: a fraction of the window.

    Raises:
        ValueError: no sides or ratios, a number that is not positive and finite, or more than ``MOST_WINDOWS`` windows
            of one shape.
    """
    if not (len(sides) and len(aspect_ratios)):
        raise ValueError("sliding windows need at least one side and one aspect ratio")
    for name, values in (("size", size), ("sides", sides), ("aspect_ratios", aspect_ratios), ("stride", (stride,))):
        if not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be positive and finite, not {values}")
    grids = []
    for side in sides:
        for ratio in aspect_ratios:
            width, height = min(side * math.sqrt(ratio), size[1]), min(side / math.sqrt(ratio), size[0])
            rooms = (size[1] - width, width), (size[0] - height, height)
            counts = [room / (stride * extent) + 1 for room, extent in rooms]
            if math.prod(counts) > MOST_WINDOWS:
                told = f"stride={stride}, aspect_ratios={ratio}, sides={side}"
                raise ValueError(f"{told} give {math.prod(counts):.1e} windows, more than {MOST_WINDOWS:,}")
            x, y = (
                np.linspace(0, room, math.ceil(count - 1) + 1) for (room, _), count in zip(rooms, counts, strict=True)
            )
            left, top = (grid.ravel() for grid in np.meshgrid(x, y))
            grids.append(np.stack([left, top, left + width, top + height], axis=1))
    boxes = np.concatenate(grids).astype(np.float32)
    boxes[:, 2:] = np.minimum(boxes[:, 2:], np.array(size[::-1], np.float32))
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


@dataclass(frozen=True)
class SlidingWindows:
    """Windows of some sides and aspect ratios on regular grids."""

    sides: tuple[float, ...] = (16.0, 24.0, 40.0)
    """Roots of the windows' areas in pixels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Widths divided by heights."""
    stride: float = 0.25
    """Distance of two windows as a fraction of their width and height; smaller where they fill the image evenly."""

    def __post_init__(self) -> None:
        sliding_windows((1, 1), self.sides, self.aspect_ratios, self.stride)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the boxes, beside the image and the seed; JSON."""
        return {"method": "sliding windows 1", **asdict(self)}

    def boxes(self, image: UInt8[np.ndarray, "Y X C"], seed: int | Sequence[int]) -> Float32[np.ndarray, "N 4"]:
        """The windows in random order, so that the first ones are a sample of all."""
        windows = sliding_windows((image.shape[0], image.shape[1]), self.sides, self.aspect_ratios, self.stride)
        return np.random.default_rng(seed).permutation(windows)


def jittered_boxes(
    boxes: Float[np.ndarray, "N 4"],
    count: int,
    size: tuple[int, int],
    *,
    scale: tuple[float | int, float | int] = (0.7, 1.4),
    shift: float | int = 0.25,
    seed: int | Sequence[int] = 0,
) -> Float32[np.ndarray, "M 4"]:
    """``count`` random variants of each box, clipped to the image; first one variant of each box, then the next.

    Width and height are multiplied by factors of their own, uniform in the logarithm; the centre moves along each axis
    by a uniform fraction of the box's side, and stays in the image. So every variant has an area.

    Args:
        boxes: x1 y1 x2 y2 in pixels, such as the objects of an image.
        count: variants of each.
        size: height and width of the image in pixels.
        scale: the least and the greatest factor.
        shift: the greatest move, as a fraction of width and height.
        seed: the seed of all numbers.

    Raises:
        ValueError: a negative count, a range that is empty or not positive, or a box that is empty or not finite.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, not {count}")
    if not 0 < scale[0] <= scale[1] < math.inf or not 0 <= shift < math.inf:
        raise ValueError(f"scale must be 0 < least <= greatest, and shift not negative, not {scale} and {shift}")
    given = np.asarray(boxes, np.float64)
    sides = given[:, 2:] - given[:, :2]
    if not (np.isfinite(given).all() and (sides > 0).all()):
        raise ValueError(f"box {np.argmin(np.isfinite(given).all(1) & (sides > 0).all(1))} is empty or not finite")
    random = np.random.default_rng(seed)
    limits = np.array(size[::-1], np.float64)
    shape = (count, len(given), 2)
    centres = (given[:, :2] + sides / 2 + random.uniform(-shift, shift, shape) * sides).clip(0, limits)
    half = sides / 2 * np.exp(random.uniform(math.log(scale[0]), math.log(scale[1]), shape))
    corners = np.stack([(centres - half).clip(0, limits), (centres + half).clip(0, limits)], axis=2)
    return corners.reshape(-1, 4).astype(np.float32)
