"""One-dimensional weights of bilinear samples of regions, which are separable into one axis and the other."""

import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array, Float

_SAMPLES_OF_A_PIXEL = 6


def align_weights(
    starts: Float[Array, "*B"], sizes: Float[Array, "*B"], bins: int, length: int, sampling_ratio: int | None
) -> Float[Array, "*B bins length"]:
    """The weight of each pixel of a row in the mean over the samples of each bin, for ``roi_align``.

    Sample s of bin b is at ``start + b size/bins + (s + 1/2) size / (bins n)``, where whole numbers are pixel centres.
    A sample in ``[-1, length]`` is moved into ``[0, length - 1]`` and interpolates the two pixels around it; others
    count as 0.

    With n fixed, all samples are summed. With ``n = ceil(size / bins)``, samples are more than half a pixel apart (if
    there are several), so that at most five of them touch a pixel however large the box is: they are found by division.
    """
    begin, step = bin_starts(starts, sizes, bins)
    begin, step = begin[..., None], step[..., None, None]
    pixels = jnp.arange(length, dtype=starts.dtype).reshape((1,) * (begin.ndim - 1) + (length,))
    total = jnp.zeros((*begin.shape[:-1], length), starts.dtype)
    if sampling_ratio is not None:

        def add(s: Array, total: Array) -> Array:
            place = begin + (s.astype(begin.dtype) + 0.5) * step / sampling_ratio
            return total + _hat(place, pixels, length)

        return lax.fori_loop(0, sampling_ratio, add, total) / sampling_ratio
    count = jnp.maximum(jnp.ceil(step), 1)
    spacing = jnp.where(step > 0, step / count, 1)
    first = jnp.maximum(jnp.floor((pixels - 1 - begin) / spacing - 0.5), 0)
    for k in range(_SAMPLES_OF_A_PIXEL):
        sample = first + k
        weight = _hat(begin + (sample + 0.5) * step / count, pixels, length)
        total = total + jnp.where(sample < count, weight, 0)
    return total / count


def bin_starts(starts: Float[Array, "*B"], sizes: Float[Array, "*B"], bins: int) -> tuple[Array, Array]:
    """The start of each bin ``[*B bins]``, and the size of a bin ``[*B]``."""
    step = divided(sizes, bins)
    numbers = jnp.arange(bins, dtype=starts.dtype).reshape((1,) * starts.ndim + (bins,))
    return starts[..., None] + numbers * step[..., None], step


def divided(x: Float[Array, "*B"], n: int) -> Float[Array, "*B"]:
    """``x / n`` as rounded by a division.

    XLA multiplies by the inverse of a constant, also behind an optimization barrier. With 7 bins, every second size is
    then off by its last bit, which ``ceil`` and ``floor`` may turn into one more sample or pixel than Caffe,
    torchvision and onnxruntime take. XLA does not know that ``0 x`` is 0.
    """
    return x / (n + 0 * x)


def _hat(places: Array, pixels: Array, length: int) -> Array:
    """The weight of each pixel in linear interpolation at each place, with the rule for the border."""
    inside = (places >= -1) & (places <= length)
    weight = jnp.maximum(1 - jnp.abs(jnp.clip(places, 0, length - 1) - pixels), 0)
    return jnp.where(inside, weight, 0)
