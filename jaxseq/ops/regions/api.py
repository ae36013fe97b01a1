"""RoI align, RoI max pooling and region warping: the public functions, their checks, the choice of an implementation."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
from jax import lax

from jaxseq.ops.implementations import choose_implementation, implementation_scope
from jaxseq.ops.regions.align_matmul import align_matmul
from jaxseq.ops.regions.boxes import is_empty, without_empty
from jaxseq.ops.regions.max_pool import bin_edges, pool_masked
from jaxseq.ops.regions.warp import warp_image
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float, Shaped

RoiAlignImplementation = Literal["auto", "matmul"]
RoiMaxPoolImplementation = Literal["auto", "masked"]
Reduction = Literal["mean", "max"]


def roi_align(
    features: Float[Array, "*B Y X F"],
    boxes: Float[Array, "*B R 4"],
    size: tuple[int, int],
    *,
    scale: float,
    sampling_ratio: int | None = 2,
    aligned: bool = True,
    reduction: Reduction = "mean",
    implementation: RoiAlignImplementation = "auto",
) -> Float[Array, "*B R _h _w F"]:
    """Bilinear samples of each box on a regular grid, reduced to ``size`` bins (He et al. 2017).

    A box times ``scale`` is cut into ``size`` (height, width) bins. In each bin, n x n samples are interpolated between
    pixel centres and their mean (or maximum) is taken. A sample farther than one pixel from the outermost pixel centres
    counts as 0; nearer ones take the value at the border. The gradient is with respect to the features alone: boxes get
    none.

    Empty boxes (``boxes.is_empty``: padding, inverted, NaN) give zeros.

    Args:
      features: feature maps.
      boxes: boxes in pixels of the image.
      size: bins, (height, width).
      scale: pixels of the map for each pixel of the image, for example 1/16.
      sampling_ratio: n; or ``None`` for ``ceil(bin size)``, for each box and axis.
      aligned: pixel centres at half-integers, as everywhere in this package (ONNX ``half_pixel``, torchvision
        ``aligned=True``). If False, coordinates are taken as pixel centres at whole numbers, half a pixel off, and sizes on the map are at least 1
        (ONNX ``output_half_pixel``, torchvision's default).
      reduction: ``"mean"`` or ``"max"`` of the interpolated samples.
      implementation: ``"matmul"`` or ``"auto"``.

    Raises:
      ValueError: shapes do not fit, an option is out of its range, or the implementation is unknown.
    """
    _check("roi_align", features, boxes, size, scale)
    if sampling_ratio is not None and sampling_ratio < 1:
        raise ValueError(f"roi_align: sampling_ratio={sampling_ratio} must be at least 1, or None")
    if reduction != "mean":
        raise ValueError(f"roi_align: reduction={reduction!r}; known: mean")
    chosen = choose_implementation("roi_align", implementation, RoiAlignImplementation, lambda: "matmul")
    empty, boxes = _sound(boxes)
    shift = 0.5 if aligned else 0.0
    starts = boxes[..., :2] * scale - shift
    sizes = boxes[..., 2:] * scale - shift - starts
    if not aligned:
        sizes = jnp.maximum(sizes, 1)
    with implementation_scope("roi_align", chosen):
        return _for_each_image(
            lambda image, *regions: align_matmul(image, *regions, size, sampling_ratio), features, starts, sizes, empty
        )


def roi_max_pool(
    features: Float[Array, "*B Y X F"],
    boxes: Float[Array, "*B R 4"],
    size: tuple[int, int],
    *,
    scale: float,
    implementation: RoiMaxPoolImplementation = "auto",
) -> Float[Array, "*B R _h _w F"]:
    """RoI max pooling (Girshick 2015): the maximum over each bin of a box whose corners are rounded to pixels of the map.

    Raises:
      ValueError: shapes do not fit, an option is out of its range, or the implementation is unknown.
    """
    _check("roi_max_pool", features, boxes, size, scale)
    chosen = choose_implementation("roi_max_pool", implementation, RoiMaxPoolImplementation, lambda: "masked")
    empty, boxes = _sound(boxes)

    def pool(image: Array, boxes: Array, empty: Array) -> Array:
        rows = bin_edges(boxes[:, 1], boxes[:, 3], size[0], image.shape[0], scale)
        columns = bin_edges(boxes[:, 0], boxes[:, 2], size[1], image.shape[1], scale)
        rows = rows[0], jnp.where(empty[:, None], rows[0], rows[1])
        return pool_masked(image, rows, columns)

    with implementation_scope("roi_max_pool", chosen):
        return _for_each_image(pool, features, boxes, empty)


def warp_regions(
    images: Shaped[Array, "*B Y X C"],
    boxes: Float[Array, "*B R 4"],
    size: tuple[int, int],
    *,
    context: int = 16,
    fill: float | Sequence[float] = 0.0,
) -> Float[Array, "*B R _h _w C"]:
    """Each box, with the image around it, resampled to ``size`` whatever its aspect ratio (R-CNN's warp).

    Raises:
      ValueError: shapes do not fit, or an option is out of its range.
    """
    _check("warp_regions", images, boxes, size, 1.0)
    if context < 0 or 2 * context >= min(size):
        raise ValueError(f"warp_regions: context={context} on both sides must leave a part of size={tuple(size)}")
    dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
    wide = at_least_float32(dtype)
    colour = jnp.asarray(fill, wide)
    if colour.shape not in ((), images.shape[-1:]):
        raise ValueError(f"warp_regions: fill {fill} is not one number, or one for each of {images.shape[-1]} channels")
    colour = jnp.broadcast_to(colour, images.shape[-1:])
    empty, boxes = _sound(boxes)

    def warp(image: Array, boxes: Array, empty: Array) -> Array:
        return warp_image(image, boxes.astype(wide), empty, size, context, colour)

    return _for_each_image(warp, images.astype(wide), boxes, empty).astype(dtype)


def _sound(boxes: Array) -> tuple[Bool[Array, "*B R"], Float[Array, "*B R 4"]]:
    """Which boxes are empty, and the boxes in at least float32 with the empty ones as zeros; no gradient passes."""
    boxes = lax.stop_gradient(boxes)
    return is_empty(boxes), without_empty(boxes).astype(at_least_float32(boxes.dtype))


def _for_each_image(function: Callable[..., Array], images: Array, *regions: Array) -> Array:
    """``function`` of one map ``[Y X F]`` and the regions of one image, for any leading dimensions."""
    batch, count = images.shape[:-3], math.prod(images.shape[:-3])
    if not batch:
        return function(images, *regions)
    flat = [x.reshape(count, *x.shape[len(batch) :]) for x in (images, *regions)]
    out = lax.map(lambda x: function(*x), tuple(flat))
    return out.reshape(*batch, *out.shape[1:])


def _check(name: str, maps: Array, boxes: Array, size: Sequence[int], scale: float) -> None:
    if maps.ndim < 3 or boxes.ndim < 2 or boxes.shape[-1] != 4 or maps.shape[:-3] != boxes.shape[:-2]:
        raise ValueError(f"{name}: maps {maps.shape} ([*B, Y, X, F]) and boxes {boxes.shape} ([*B, R, 4]) do not fit")
    if 0 in maps.shape[-3:]:
        raise ValueError(f"{name}: maps {maps.shape} have no pixel or no channel")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name}: size={tuple(size)} must be two positive numbers (height, width)")
    if not 0 < scale < math.inf:
        raise ValueError(f"{name}: scale={scale} must be positive")
