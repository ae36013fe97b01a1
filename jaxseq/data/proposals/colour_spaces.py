"""The colour spaces of selective search. Every channel is scaled to [0, 1]."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8

ColourSpace: TypeAlias = Literal["hsv", "lab", "rgi", "hue", "intensity"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""The weights of red, green and blue in the intensity (ITU-R BT.601)."""


def converted(image: UInt8[np.ndarray, "Y X 3"], space: ColourSpace) -> Float32[np.ndarray, "Y X C"]:
    """An RGB image in another colour space.

    - ``hsv``: hue, saturation, value.
    - ``lab``: CIE L*a*b* (D65); L* is divided by 100, a* and b* are shifted by 128 and divided by 255.
    - ``rgi``: red and green, each divided by the sum of red, green and blue (1/3 where it is black), and the intensity.
    - ``hue``: the hue of ``hsv`` alone.
    - ``intensity``: the weighted mean of red, green and blue.

    Raises:
        ImportError: the extra ``images`` is not installed.
    """
    return _CONVERSIONS[space](image)


def _hsv(image: np.ndarray) -> np.ndarray:
    return _colour().rgb2hsv(image).astype(np.float32)


def _lab(image: np.ndarray) -> np.ndarray:
    shift, extent = np.array([0.0, 128.0, 128.0]), np.array([100.0, 255.0, 255.0])
    return ((_colour().rgb2lab(image) + shift) / extent).clip(0, 1).astype(np.float32)


def _rgi(image: np.ndarray) -> np.ndarray:
    rgb = image.astype(np.float32)
    total = rgb.sum(-1, keepdims=True)
    shares = np.divide(rgb[..., :2], total, out=np.full((*rgb.shape[:2], 2), 1 / 3, np.float32), where=total > 0)
    return np.concatenate([shares, _intensity(image)], axis=-1)


def _hue(image: np.ndarray) -> np.ndarray:
    return _hsv(image)[..., :1]


def _intensity(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) @ LUMA / np.float32(255))[..., None]


_CONVERSIONS: dict[ColourSpace, Callable[[np.ndarray], np.ndarray]] = {
    "hsv": _hsv,
    "lab": _lab,
    "rgi": _rgi,
    "hue": _hue,
    "intensity": _intensity,
}


def _colour() -> Any:
    """The module ``skimage.color``."""
    try:
        import skimage.color
    except ImportError:
        raise ImportError('selective search needs scikit-image: pip install "jaxseq[images]"') from None
    return skimage.color
