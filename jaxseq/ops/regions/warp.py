"""R-CNN's anisotropic warp of regions to a fixed size: rows are combined, then columns, each by the pixels it needs.

The gradient of the images is taken by matrix products with the same weights.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxseq.ops.regions.linear_map import LinearMap
from jaxseq.ops.regions.windows import read
from jaxseq.typing import Array, Float

_GROUP = 4
"""Pixels that are added in one step of the loop over a window."""


class _Static(NamedTuple):
    shape: tuple[int, ...]
    size: tuple[int, int]


class _Axis(NamedTuple):
    """The triangles of the outputs of one axis."""

    centres: Array
    """In pixel centres at whole numbers, ``[outputs]``."""
    reach: Array
    """Half the width of a triangle."""
    total: Array
    """The sum of a triangle over all whole numbers, ``[outputs]``."""

    def weights(self, pixels: Array) -> Array:
        """The weight of each output at its pixel."""
        return jnp.maximum(1 - jnp.abs(pixels - self.centres) / self.reach, 0) / self.total


def warp(
    images: Float[Array, "B Y X C"], boxes: Float[Array, "B R 4"], empty: Array, size: tuple[int, int], context: int
) -> Float[Array, "B R h w C"]:
    """The regions of images that are 0 outside; ``boxes`` are finite."""
    extent = boxes[..., 2:] - boxes[..., :2]
    margin = extent * jnp.asarray([context / (n - 2 * context) for n in size[::-1]], boxes.dtype)[None, None]
    low, extent = boxes[..., :2] - margin, extent + 2 * margin
    return LinearMap(_warp, _warp_back, _Static(images.shape[1:], size))((low, extent, empty), images)


def _axis(low: Array, extent: Array, outputs: int) -> _Axis:
    """A triangle reaches to 1 pixel of the row from its centre, or 1 pixel of the output where the box shrinks."""
    scale = extent / outputs
    reach = jnp.maximum(scale, 1)
    centres = low + (jnp.arange(outputs, dtype=low.dtype) + 0.5) * scale - 0.5
    below = centres - jnp.floor(centres)
    return _Axis(centres, reach, _series(reach, below) + _series(reach, 1 - below))


def _series(reach: Array, first: Array) -> Array:
    """``Σ_k max(0, 1 - (first + k) / reach)`` over k = 0, 1, ...; for ``0 <= first <= 1 <= reach``."""
    terms = jnp.floor(reach - first) + 1
    return terms * (1 - first / reach) - terms * (terms - 1) / (2 * reach)


def _combine(lines: Float[Array, "N D"], axis: _Axis, empty: Array) -> Float[Array, "outputs D"]:
    """The weighted sum of lines of each output."""
    length = lines.shape[0]
    first = jnp.clip(jnp.ceil(axis.centres - axis.reach), 0, length)
    last = jnp.clip(jnp.floor(axis.centres + axis.reach), -1, length - 1)
    count = jnp.where(empty, 0, jnp.clip(last - first + 1, 0, length).max()).astype(jnp.int32)

    def some(k: Array, total: Array) -> Array:
        for each in range(_GROUP):
            pixels = first + (k * _GROUP + each).astype(first.dtype)
            weights = jnp.where(pixels <= last, axis.weights(pixels), 0)
            places = jnp.minimum(pixels, length - 1).astype(jnp.int32)
            total = total + weights[:, None].astype(lines.dtype) * read(lines, places)
        return total

    zeros = jnp.zeros((axis.centres.shape[0], lines.shape[1]), lines.dtype)
    return lax.fori_loop(0, (count + _GROUP - 1) // _GROUP, some, zeros)


def _warp(static: _Static, fixed: tuple[Array, ...], images: Array) -> Array:
    (height, width, channels), size = static

    def image(xs: tuple[Array, ...]) -> Array:
        lines = xs[-1].reshape(height, width * channels)

        def region(region: tuple[Array, ...]) -> Array:
            low, extent, empty = region
            rows = _combine(lines, _axis(low[1], extent[1], size[0]), empty)
            turned = rows.reshape(size[0], width, channels).swapaxes(0, 1).reshape(width, -1)
            columns = _combine(turned, _axis(low[0], extent[0], size[1]), empty)
            return columns.reshape(size[1], size[0], channels).swapaxes(0, 1)

        return lax.map(region, xs[:-1])

    return lax.map(image, (*fixed, images))


def _warp_back(static: _Static, fixed: tuple[Array, ...], cotangent: Array) -> Array:
    (height, width, channels), size = static

    def dense(low: Array, extent: Array, outputs: int, length: int) -> Array:
        axis = _axis(low, extent, outputs)
        spread = _Axis(axis.centres[:, None], axis.reach, axis.total[:, None])
        return spread.weights(jnp.arange(length, dtype=low.dtype)[None]).astype(cotangent.dtype)

    def image(xs: tuple[Array, ...]) -> Array:
        def region(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
            low, extent, empty, given = xs
            rows = dense(low[1], extent[1], size[0], height)
            columns = dense(low[0], extent[0], size[1], width)
            given = jnp.where(empty, 0, given)
            part = jnp.einsum("hwc,wx->hxc", given, columns, precision=lax.Precision.HIGHEST)
            return total + jnp.einsum("hy,hxc->yxc", rows, part, precision=lax.Precision.HIGHEST), None

        return lax.scan(region, jnp.zeros((height, width, channels), cotangent.dtype), xs)[0]

    return lax.map(image, (*fixed, cotangent))
