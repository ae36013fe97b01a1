"""The initial regions of selective search: graph-based segmentation (Felzenszwalb and Huttenlocher, 2004)."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int


def smoothed(image: Float32[np.ndarray, "Y X C"], sigma: float) -> Float32[np.ndarray, "Y X C"]:
    """The image convolved with a Gaussian of standard deviation ``sigma`` pixels; border pixels are repeated."""
    if sigma == 0:
        return image
    return np.asarray(_skimage().filters.gaussian(image, sigma, mode="nearest", channel_axis=-1), np.float32)


def segmented(image: Float32[np.ndarray, "Y X C"], *, scale: float, min_size: int) -> Int[np.ndarray, "Y X"]:
    """The region of each pixel, 0 to N - 1.

    Pixels are joined to their eight neighbours in the order of their distance in colour, measured in units of 1/255 of
    a channel's range. Two regions are merged if the distance is at most ``Int(R) + scale / |R|`` of both, where Int(R)
    is the largest distance by which R was merged and |R| its pixels. Regions below ``min_size`` pixels are merged with
    a neighbour afterwards.

    Raises:
        ImportError: the extra ``images`` is not installed.
    """
    if image.shape[0] * image.shape[1] == 1:
        return np.zeros((1, 1), np.int64)
    found = _skimage().segmentation.felzenszwalb(image, scale=scale, sigma=0, min_size=min_size, channel_axis=-1)
    return np.asarray(found, np.int64)


def skimage_version() -> str:
    """The version of scikit-image.

    Raises:
        ImportError: the extra ``images`` is not installed.
    """
    return str(_skimage().__version__)


def _skimage() -> Any:
    """The package ``skimage`` with the modules used here."""
    try:
        import skimage.filters
        import skimage.segmentation
    except ImportError:
        raise ImportError('selective search needs scikit-image: pip install "jaxseq[images]"') from None
    return skimage
