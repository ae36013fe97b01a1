"""The features of regions that selective search compares: histograms of colour and texture, sizes and boxes."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8

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
    """The bin of each pixel in each of its histograms, from 0: one for each channel, and for each derivative."""

    colour: UInt8[np.ndarray, "C Y X"]
    texture: UInt8[np.ndarray, "C*8 Y X"]


def pixel_bins(image: Float32[np.ndarray, "Y X C"]) -> PixelBins:
    """The bins of an image whose channels lie in [0, 1].

    Texture: the derivatives of a Gaussian in eight directions, 45 degrees apart, in each channel; negative ones count
    as 0. The bins of a derivative are of equal width between 0 and its maximum over the image.
    """
    channels = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    return PixelBins(
        _binned(channels * COLOUR_BINS, COLOUR_BINS),
        np.concatenate([_texture_bins(derivatives(channel)) for channel in channels]),
    )


def region_features(bins: PixelBins, labels: Int[np.ndarray, "Y X"]) -> Regions:
    """The features of the regions 0 to N - 1 of ``labels``."""
    count = int(labels.max()) + 1
    return Regions(
        _histograms(bins.colour, labels, count, COLOUR_BINS),
        _histograms(bins.texture, labels, count, TEXTURE_BINS),
        np.bincount(labels.ravel(), minlength=count),
        region_boxes(labels, count),
    )


def derivatives(channel: Float32[np.ndarray, "Y X"]) -> Float32[np.ndarray, "8 Y X"]:
    """The positive part of the derivative of a channel in eight directions, after Gaussian smoothing."""
    radius = math.ceil(3 * TEXTURE_SIGMA)
    offsets = np.arange(-radius, radius + 1)
    gaussian = np.exp(-(offsets**2) / (2 * TEXTURE_SIGMA**2))
    gaussian /= gaussian.sum()
    slope = offsets * gaussian / (offsets**2 * gaussian).sum()  # a ramp of slope 1 has the derivative 1
    dy = _correlated(_correlated(channel, slope, 0), gaussian, 1)
    dx = _correlated(_correlated(channel, gaussian, 0), slope, 1)
    half = ORIENTATIONS // 2
    found = np.empty((ORIENTATIONS, *channel.shape), np.float32)
    for place in range(half):
        angle = place * 2 * math.pi / ORIENTATIONS
        along = np.float32(math.cos(angle)) * dx + np.float32(math.sin(angle)) * dy
        np.maximum(along, 0, out=found[place])
        np.maximum(-along, 0, out=found[place + half])
    return found


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


def _texture_bins(found: np.ndarray) -> np.ndarray:
    """The bins of derivatives [8 Y X]."""
    widest = found.max((1, 2), keepdims=True)
    scale = np.divide(TEXTURE_BINS, widest, out=np.zeros_like(widest), where=widest > SMALLEST_DERIVATIVE)
    return _binned(found * scale, TEXTURE_BINS)


def _binned(values: np.ndarray, number: int) -> np.ndarray:
    """The bins of values in [0, number]."""
    return np.minimum(values, np.float32(number - 1)).astype(np.uint8)


def _histograms(bins: np.ndarray, labels: np.ndarray, count: int, number: int) -> np.ndarray:
    """The counts of the bins 0 to number - 1 of each channel [C Y X] in each region, [N C*number]."""
    first = labels * number
    found = np.empty((count, len(bins), number), np.float32)
    for channel, codes in enumerate(bins):
        counts = np.bincount((first + codes).ravel(), minlength=count * number)
        found[:, channel] = counts.reshape(count, number)
    return found.reshape(count, -1)


def _correlated(channel: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """The correlation with a kernel along one axis; border pixels are repeated."""
    radius, length = len(kernel) // 2, channel.shape[axis]
    padded = channel.take(np.arange(-radius, length + radius).clip(0, length - 1), axis)
    total = np.zeros_like(channel)
    for start, weight in enumerate(kernel.astype(np.float32)):
        total += weight * (padded[start : start + length] if axis == 0 else padded[:, start : start + length])
    return total
