"""Operations on images ``[*B Y X C]``, pixels 0..255: normalization, resizing, crops, flips.

All are pure functions for ``jax.jit`` and ``jax.vmap``. Random ones take one key for each image, or one for all, of
which image i uses ``jax.random.fold_in(key, i)`` (i counts the images of the batch in order). What is drawn for an
image does not depend on the others.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.keys import fold_in_each, threefry_keys
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, DType, Float, Key, Shaped


def normalize(
    images: Shaped[Array | np.ndarray, "*B Y X C"],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DType = jnp.float32,
) -> Float[Array, "*B Y X C"]:
    """``(images - mean) / std`` for each channel; computed in float32 (or wider, as ``dtype``), returned in ``dtype``.

    Raises:
      ValueError: not one mean and one positive deviation for each channel, or images of a wrong shape.
    """
    images = _images("normalize", images)
    channels = images.shape[-1]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise ValueError(f"mean={tuple(mean)}, std={tuple(std)} do not fit {channels} channels")
    wide = at_least_float32(dtype)
    shape = (1,) * (images.ndim - 1) + (channels,)
    center, scale = (jnp.asarray(values, wide).reshape(shape) for values in (mean, std))
    return ((images.astype(wide) - center) / scale).astype(dtype)


def resize(
    images: Shaped[Array | np.ndarray, "*B Y X C"], size: tuple[int, int], *, antialias: bool = True
) -> Float[Array, "*B _Y _X C"]:
    """Bilinear interpolation to ``size`` (height, width), pixel centres at half-integers.

    An output is the mean of the input pixels weighted by a triangle of a width of two pixels: pixels of the output if
    the image shrinks and ``antialias`` is set (as Pillow does), else of the input (as torch does by default). Integer
    images become float32, without rounding; floating-point images keep their dtype.

    Raises:
      ValueError: a size that is not positive, or images of a wrong shape.
    """
    images = _images("resize", images)
    height, width = size
    if min(size) < 1:
        raise ValueError(f"resize: size={tuple(size)} must be positive (height, width)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(jnp.float32)
    shape = (*images.shape[:-3], height, width, images.shape[-1])
    return jax.image.resize(images, shape, "bilinear", antialias=antialias)


def center_crop(images: Shaped[Array | np.ndarray, "*B Y X C"], size: tuple[int, int]) -> Shaped[Array, "*B _Y _X C"]:
    """The middle ``size`` (height, width) of each image; of an odd rest, the larger part is cut at the end.

    Raises:
      ValueError: ``size`` is not within the image, or images of a wrong shape.
    """
    images = _images("center_crop", images)
    top, left = (room // 2 for room in _room("center_crop", images, size))
    return images[..., top : top + size[0], left : left + size[1], :]


def random_crop(
    images: Shaped[Array | np.ndarray, "*B Y X C"], size: tuple[int, int], *, key: Key[Array, "..."]
) -> Shaped[Array, "*B _Y _X C"]:
    """``size`` (height, width) of each image at a place drawn uniformly.

    Raises:
      ValueError: ``size`` is not within the image, keys that are neither one nor one for each image, or images of a
        wrong shape.
    """
    images = _images("random_crop", images)
    room = _room("random_crop", images, size)
    keys = _keys("random_crop", images, key)

    def crop(image: Array, key: Array) -> Array:
        top, left = jax.random.randint(key, (2,), 0, jnp.asarray(room, jnp.int32) + 1)
        zero = jnp.zeros((), top.dtype)
        return lax.dynamic_slice(image, (top, left, zero), (*size, image.shape[-1]))

    flat = images.reshape(-1, *images.shape[-3:]) if images.size else images.reshape(0, *images.shape[-3:])
    return jax.vmap(crop)(flat, keys).reshape(*images.shape[:-3], *size, images.shape[-1])


def random_flip(
    images: Shaped[Array | np.ndarray, "*B Y X C"], *, key: Key[Array, "..."], rate: float = 0.5
) -> Shaped[Array, "*B Y X C"]:
    """Each image, with left and right exchanged with probability ``rate``.

    Captions that say "left" or "right" do not survive this.

    Raises:
      ValueError: ``rate`` is not a probability, keys as in ``random_crop``, or images of a wrong shape.
    """
    images = _images("random_flip", images)
    if not 0 <= rate <= 1:
        raise ValueError(f"random_flip: rate={rate} must be from 0 to 1")
    draws: Bool[Array, " N"] = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(_keys("random_flip", images, key))
    return jnp.where(draws.reshape(*images.shape[:-3], 1, 1, 1), images[..., ::-1, :], images)


def _images(name: str, images: Array | np.ndarray) -> Array:
    images = jnp.asarray(images)
    if images.ndim < 3 or 0 in images.shape[-3:]:
        raise ValueError(f"{name} needs images of shape [*B, Y, X, C] with at least one pixel, not {images.shape}")
    return images


def _room(name: str, images: Array, size: tuple[int, int]) -> tuple[int, int]:
    """The pixels left over in Y and X."""
    height, width = images.shape[-3:-1]
    if not (0 < size[0] <= height and 0 < size[1] <= width):
        raise ValueError(f"{name}: size={tuple(size)} is not within an image of {height} x {width} px: resize it first")
    return height - size[0], width - size[1]


def _keys(name: str, images: Array, key: Array) -> Array:
    """One key for each image, in one row."""
    batch = images.shape[:-3]
    if key.shape not in ((), batch):
        raise ValueError(f"{name}: keys {key.shape} are neither one nor one for each of the images {batch}")
    if key.shape != batch:
        return threefry_keys(fold_in_each(key, math.prod(batch)).reshape(-1))
    return threefry_keys(key.reshape(-1))
