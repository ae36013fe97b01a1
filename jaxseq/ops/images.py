"""Operations on images ``[*B Y X C]``, pixels 0..255: normalization, resizing, crops, flips."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxseq.typing import Array, DType, Float, Shaped


def normalize(
    images: Shaped[Array | np.ndarray, "*B Y X C"],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DType = jnp.float32,
) -> Float[Array, "*B Y X C"]:
    """``(images - mean) / std`` for each channel; computed in float32 (or wider, as ``dtype``), returned in ``dtype``.

    Raises:
      ValueError: not one mean and one positive deviation for each channel.
    """
    images = jnp.asarray(images)
    channels = images.shape[-1]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise ValueError(f"mean={tuple(mean)}, std={tuple(std)} do not fit {channels} channels")
    wide = jnp.promote_types(dtype, jnp.float32)
    shape = (1,) * (images.ndim - 1) + (channels,)
    center, scale = (jnp.asarray(values, wide).reshape(shape) for values in (mean, std))
    return ((images.astype(wide) - center) / scale).astype(dtype)
