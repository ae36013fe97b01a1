"""One-dimensional interpolation weights of regions: bilinear interpolation of a box is separable into two of them."""

import math

import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array, Float

_SAMPLES_OF_A_PIXEL = 6


def align_weights(
    starts: Float[Array, " R"], sizes: Float[Array, " R"], bins: int, length: int, sampling_ratio: int | None
) -> Float[Array, "R bins length"]:
    """The weight of each pixel of a row in the mean over the samples of each bin, for ``roi_align``.

    Sample s of bin b is at ``start + b size/bins + (s + 1/2) size / (bins n)``, in pixel centres at whole numbers. A sample
    in ``[-1, length]`` is moved into ``[0, length - 1]`` and interpolates the two pixels around it; others count as 0.

    With n fixed, all samples are summed. With ``n = ceil(size / bins)`` samples are more than half a pixel apart, so that
    at most five of them touch a pixel, however large the box is: those are found by division.
    """
    bin_sizes = (sizes / bins)[:, None]
    bin_starts = starts[:, None] + jnp.arange(bins, dtype=starts.dtype)[None] * bin_sizes
    if sampling_ratio is not None:
        steps = jnp.arange(sampling_ratio, dtype=starts.dtype) + 0.5
        places = bin_starts[..., None] + steps[None, None] * bin_sizes[..., None] / sampling_ratio
        return hat(places[..., None], length).sum(-2) / sampling_ratio
    count = jnp.maximum(jnp.ceil(bin_sizes), 1)[..., None]
    spacing = bin_sizes[..., None] / count
    pixels = jnp.arange(length, dtype=starts.dtype)[None, None]
    first = jnp.floor((pixels - 1 - bin_starts[..., None]) / jnp.where(spacing > 0, spacing, 1) - 0.5)
    first = jnp.maximum(first, 0)
    total = jnp.zeros((*bin_starts.shape, length), starts.dtype)
    for k in range(_SAMPLES_OF_A_PIXEL):
        sample = first + k
        exists = (sample >= 0) & (sample < count)
        place = bin_starts[..., None] + (sample + 0.5) * bin_sizes[..., None] / count
        total = total + jnp.where(exists, _hat_at(place, pixels, length), 0)
    return total / count


def hat(places: Float[Array, "*B 1"], length: int) -> Float[Array, "*B length"]:
    """The weights of linear interpolation at each place among ``length`` pixels, with the border rule of ``align_weights``."""
    pixels = jnp.arange(length, dtype=places.dtype).reshape((1,) * (places.ndim - 1) + (length,))
    return _hat_at(places, pixels, length)


def _hat_at(places: Array, pixels: Array, length: int) -> Array:
    inside = (places >= -1) & (places <= length)
    weight = jnp.maximum(1 - jnp.abs(jnp.clip(places, 0, length - 1) - pixels), 0)
    return jnp.where(inside, weight, 0)


def triangle_weights(
    starts: Float[Array, " R"], sizes: Float[Array, " R"], outputs: int, length: int
) -> Float[Array, "R outputs length"]:
    """The weight of each pixel of a row in each of ``outputs`` pixels that a box is resampled to, for ``warp_regions``.

    The weights are a triangle around the output's centre, of half width 1 pixel of the row, or 1 pixel of the output where
    the box shrinks. They sum to 1 over all whole numbers; pixels outside of the row are left out.
    """
    scale = sizes[:, None, None] / outputs
    reach = jnp.maximum(scale, 1)
    centres = starts[:, None, None] + (jnp.arange(outputs, dtype=starts.dtype)[None, :, None] + 0.5) * scale - 0.5
    pixels = jnp.arange(length, dtype=starts.dtype)[None, None]
    weights = jnp.maximum(1 - jnp.abs(pixels - centres) / reach, 0)
    below = centres - jnp.floor(centres)
    return weights / (_series(reach, below) + _series(reach, 1 - below))


def _series(reach: Array, first: Array) -> Array:
    """``Σ_k max(0, 1 - (first + k) / reach)`` over k = 0, 1, ...; for 0 <= first <= 1 <= reach."""
    terms = jnp.floor(reach - first) + 1
    return terms * (1 - first / reach) - terms * (terms - 1) / (2 * reach)


def combine(
    rows: Float[Array, "R h Y"], columns: Float[Array, "R w X"], maps: Float[Array, "Y X F"]
) -> Float[Array, "R h w F"]:
    """``out[r] = rows[r] · map · columns[r]ᵀ`` for each channel, by matrix products; the cheaper axis first."""
    height, width = maps.shape[:2]
    (h, w), precision = (rows.shape[1], columns.shape[1]), lax.Precision.HIGHEST
    if h * height * width + h * w * width <= w * height * width + h * w * height:
        some = jnp.einsum("rhy,yxf->rhxf", rows, maps, precision=precision)
        return jnp.einsum("rwx,rhxf->rhwf", columns, some, precision=precision)
    some = jnp.einsum("rwx,yxf->rwyf", columns, maps, precision=precision)
    return jnp.einsum("rhy,rwyf->rhwf", rows, some, precision=precision)


def chunk_of_regions(intermediate: int, budget: int = 2**22) -> int:
    """How many regions to work on at once so that intermediate arrays hold about ``budget`` numbers."""
    return max(1, budget // max(1, intermediate))


def ceil_log2(n: int) -> int:
    """The least k with ``2 ** k >= n``."""
    return math.ceil(math.log2(n)) if n > 1 else 0
