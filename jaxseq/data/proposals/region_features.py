"""The features of regions that selective search compares: histograms of colour and texture, sizes and boxes."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

COLOUR_BINS = 25
"""Bins of a channel."""
TEXTURE_BINS = 10
"""Bins of a derivative: one channel in one orientation."""
ORIENTATIONS = 8
TEXTURE_SIGMA = 1.0
"""The standard deviation of the Gaussian whose derivatives are the texture, in pixels."""
SMALLEST_DERIVATIVE = 1e-5
"""Derivatives that are nowhere larger are rounding, and count as 0."""


class Regions(NamedTuple):
    """The features of N regions.

    Histograms are counts: those of the union of two regions are the sums of theirs.
    """

    colour: Float32[np.ndarray, "N colours"]
    """Counts of the pixels in each bin of each channel."""
    texture: Float32[np.ndarray, "N textures"]
    """Counts of the pixels in each bin of each derivative."""
    sizes: Int[np.ndarray, " N"]
    """Pixels."""
    boxes: Int[np.ndarray, "N 4"]
    """x1 y1 x2 y2, in continuous pixels."""


class PixelBins(NamedTuple):
    """The bin of each pixel in each of its histograms; the bins of channel or derivative c begin at c times their
    number.
    """

    colour: Int[np.ndarray, "Y X C"]
    texture: Int[np.ndarray, "Y X C*8"]


def pixel_bins(image: Float32[np.ndarray, "Y X C"]) -> PixelBins:
    """The bins of an image whose channels lie in [0, 1].

    Texture: the derivatives of a Gaussian in eight directions, 45 degrees apart, in each channel; negative ones count
    as 0. The bins of a derivative are of equal width between 0 and its maximum over the image.
    """
    textures = derivatives(image)
    widest = textures.max((0, 1))
    textures *= np.divide(TEXTURE_BINS, widest, out=np.zeros_like(widest), where=widest > SMALLEST_DERIVATIVE)
    return PixelBins(_binned(image * COLOUR_BINS, COLOUR_BINS), _binned(textures, TEXTURE_BINS))


def region_features(bins: PixelBins, labels: Int[np.ndarray, "Y X"]) -> Regions:
    """The features of the regions 0 to N - 1 of ``labels``."""
    count = int(labels.max()) + 1
    return Regions(
        _histograms(bins.colour, labels, count, COLOUR_BINS),
        _histograms(bins.texture, labels, count, TEXTURE_BINS),
        np.bincount(labels.ravel(), minlength=count),
        region_boxes(labels, count),
    )


def derivatives(image: Float32[np.ndarray, "Y X C"]) -> Float32[np.ndarray, "Y X C*8"]:
    """The positive part of the derivative of each channel in eight directions, after Gaussian smoothing."""
    radius = math.ceil(3 * TEXTURE_SIGMA)
    offsets = np.arange(-radius, radius + 1)
    gaussian = np.exp(-(offsets**2) / (2 * TEXTURE_SIGMA**2))
    gaussian /= gaussian.sum()
    slope = -offsets * gaussian / (offsets**2 * gaussian).sum()  # a ramp of slope 1 has the derivative 1
    dy = _correlated(_correlated(image, slope, 0), gaussian, 1)
    dx = _correlated(_correlated(image, gaussian, 0), slope, 1)
    angles = np.arange(ORIENTATIONS // 2) * (2 * math.pi / ORIENTATIONS)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    half = dx[..., None] * cosines + dy[..., None] * sines
    both = np.concatenate([half, -half], axis=-1)
    return np.maximum(both, 0, out=both).reshape(*image.shape[:2], -1)


def region_boxes(labels: Int[np.ndarray, "Y X"], count: int) -> Int[np.ndarray, "N 4"]:
    """The smallest box of whole pixels around each region."""
    boxes = np.empty((count, 4), np.int64)
    for axis, places in ((0, (1, 3)), (1, (0, 2))):
        lines, regions = np.nonzero(_present(labels if axis == 0 else labels.T, count))
        boxes[regions[::-1], places[0]] = lines[::-1]  # the last write is that of the first line
        boxes[regions, places[1]] = lines + 1
    return boxes


def neighbours(labels: Int[np.ndarray, "Y X"]) -> Int[np.ndarray, "E 2"]:
    """The pairs (smaller, larger) of regions that touch at a side or a corner of a pixel, in increasing order."""
    pairs = [(labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])]
    pairs += [(labels[1:, 1:], labels[:-1, :-1]), (labels[1:, :-1], labels[:-1, 1:])]
    first = np.concatenate([a.ravel() for a, _ in pairs])
    second = np.concatenate([b.ravel() for _, b in pairs])
    differ = first != second
    first, second = first[differ], second[differ]
    count = int(labels.max()) + 1
    codes = np.unique(np.minimum(first, second) * count + np.maximum(first, second))
    return np.stack([codes // count, codes % count], axis=1)


def _present(labels: np.ndarray, count: int) -> np.ndarray:
    """Whether each row of labels has a pixel of each region [Y N]."""
    present = np.zeros((len(labels), count), bool)
    present[np.arange(len(labels))[:, None], labels] = True
    return present


def _binned(values: np.ndarray, number: int) -> np.ndarray:
    """Bins of values in [0, number] per channel."""
    bins = np.minimum(values.astype(np.int64), number - 1)
    bins += np.arange(values.shape[-1]) * number
    return bins


def _histograms(bins: np.ndarray, labels: np.ndarray, count: int, number: int) -> np.ndarray:
    """The counts of all bins in each region, [N C*number]."""
    width = bins.shape[-1] * number
    codes = bins + (labels * width)[..., None]
    return np.bincount(codes.ravel(), minlength=count * width).reshape(count, width).astype(np.float32)


def _correlated(image: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """The convolution with a kernel along one axis; border pixels are repeated."""
    radius, length = len(kernel) // 2, image.shape[axis]
    places = np.arange(-radius, length + radius).clip(0, length - 1)
    padded = image.take(places, axis)
    parts = (
        np.float32(weight) * (padded[start : start + length] if axis == 0 else padded[:, start : start + length])
        for start, weight in enumerate(kernel[::-1])
    )
    total = next(parts)
    for part in parts:
        total += part
    return total
