"""RoI align, RoI max pooling, region warping: the public functions, their checks, the choice of an implementation."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.implementations import Choice, choose_implementation, implementation_scope, unavailable
from jaxseq.ops.regions.align_gather import align_gather
from jaxseq.ops.regions.align_matmul import align_matmul
from jaxseq.ops.regions.align_max import align_max
from jaxseq.ops.regions.boxes import is_empty
from jaxseq.ops.regions.max_pool import bin_edges, max_pool
from jaxseq.ops.regions.warp import warp
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float, Shaped

RoiAlignImplementation = Literal["auto", "gather", "matmul"]
RoiMaxPoolImplementation = Literal["auto", "gather"]
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
    """Bilinear samples of each box on a regular grid, reduced to ``size`` bins (He et al. 2017, Mask R-CNN).

    A box times ``scale`` is cut into ``size`` bins. In each bin, n x n samples are interpolated between pixel centres,
    and their mean or maximum is taken. A sample more than one pixel beyond the outermost pixel centres counts as 0; one
    between them and there has the value of the border. Empty boxes (``is_empty``: padding, inverted, NaN) give zeros.
    Sums have at least float32. Features receive a gradient, boxes do not.

    Equal to torchvision's ``roi_align`` and ONNX ``RoiAlign`` (mode ``avg``), but for empty boxes, for which they
    sample a point, or with ``aligned=False`` a square of one pixel.

    ``reduction="max"`` is the maximum of the interpolated samples, as in ONNX's text and in mmcv. The reference code of
    ONNX and, by default, onnxruntime instead take the maximum over each pixel times its weight, without adding the four
    of a sample (onnx#4764, onnxruntime#6146); this is not offered.

    Args:
      features: feature maps.
      boxes: boxes in pixels of the image.
      size: bins, (height, width).
      scale: pixels of the map for each pixel of the image, for example 1/16.
      sampling_ratio: n, or ``None`` for ``ceil(size of a bin)``, for each box and axis (0 in ONNX, -1 in torchvision).
      aligned: pixel centres are at half-integers, as everywhere in this package (ONNX ``half_pixel``). If False, they
        are at whole numbers and the box is at least one pixel of the map wide and high (ONNX ``output_half_pixel``, the
        default of torchvision).
      reduction: ``"mean"`` or ``"max"``.
      implementation: ``"gather"`` (weighted sums of the pixels that are needed), ``"matmul"`` (two matrix products a
        box over the whole map; mean only) or ``"auto"``: matmul for means on a TPU, else gather.

    Raises:
      ValueError: shapes do not fit, an option is out of its range, or the implementation is unknown or has no maximum.
    """
    _check("roi_align", features, boxes, size, scale)
    if sampling_ratio is not None and not 1 <= sampling_ratio < 2**15:
        raise ValueError(f"roi_align: sampling_ratio={sampling_ratio} must be at least 1, or None")
    if reduction not in get_args(Reduction):
        raise ValueError(f"roi_align: reduction={reduction!r}; known: {', '.join(get_args(Reduction))}")
    platform = jax.default_backend()
    auto = Choice(
        "matmul" if platform == "tpu" and reduction == "mean" else "gather",
        f"the default device is {platform}, and the reduction is {reduction!r}",
    )
    chosen = choose_implementation("roi_align", implementation, RoiAlignImplementation, lambda: auto)
    if chosen == "matmul" and reduction == "max":
        raise unavailable("roi_align", chosen, "reduction='max' is not a sum")
    run: Callable[..., Array] = (
        align_matmul if chosen == "matmul" else align_gather if reduction == "mean" else align_max
    )
    empty, boxes = _sound(boxes, scale)
    shift = 0.5 if aligned else 0.0
    starts = boxes[..., :2] * scale - shift
    sizes = boxes[..., 2:] * scale - shift - starts
    sizes = sizes if aligned else jnp.maximum(sizes, 1)
    with implementation_scope("roi_align", chosen):
        return _flat(lambda *arrays: run(*arrays, _pair(size), sampling_ratio), size, features, starts, sizes, empty)


def roi_max_pool(
    features: Float[Array, "*B Y X F"],
    boxes: Float[Array, "*B R 4"],
    size: tuple[int, int],
    *,
    scale: float,
    implementation: RoiMaxPoolImplementation = "auto",
) -> Float[Array, "*B R _h _w F"]:
    """The maximum over each bin of a box whose corners are rounded to pixels of the map (Girshick 2015, Fast R-CNN).

    A box covers the pixels ``x1 .. x2 - 1`` of the image. Both are multiplied by ``scale`` and rounded (halves away
    from 0), to the first and last column of the region. Of its H rows, bin i takes ``floor(i H/h)`` to ``ceil((i + 1)
    H/h)``, which is excluded; bins may overlap. What lies outside of the map is left out; an empty bin gives 0, and so
    do all of an empty box (``is_empty``). The gradient goes to the first maximum of a bin in scan order; boxes receive
    none.

    torchvision's ``roi_pool`` and ONNX ``MaxRoiPool`` take the last pixel instead of the end: ``roi_pool(features, [x1,
    y1, x2, y2])`` is ``roi_max_pool(features, [x1, y1, x2 + 1, y2 + 1])``, and this function is theirs for ``x2 - 1``.
    They differ for boxes that are empty here: those pool one pixel there.

    Args:
      features: feature maps.
      boxes: boxes in pixels of the image.
      size: bins, (height, width).
      scale: pixels of the map for each pixel of the image, for example 1/16.
      implementation: ``"gather"`` or ``"auto"``, which is the same.

    Raises:
      ValueError: shapes do not fit, an option is out of its range, or the implementation is unknown.
    """
    _check("roi_max_pool", features, boxes, size, scale)
    auto = Choice("gather", "it is the only one")
    chosen = choose_implementation("roi_max_pool", implementation, RoiMaxPoolImplementation, lambda: auto)
    empty, boxes = _sound(boxes, scale)

    def pool(features: Array, boxes: Array, empty: Array) -> Array:
        top, bottom = bin_edges(boxes[..., 1], boxes[..., 3], size[0], features.shape[1], scale)
        left, right = bin_edges(boxes[..., 0], boxes[..., 2], size[1], features.shape[2], scale)
        return max_pool(features, (top, jnp.where(empty[..., None], top, bottom), left, right))

    with implementation_scope("roi_max_pool", chosen):
        return _flat(pool, size, features, boxes, empty)


def warp_regions(
    images: Shaped[Array, "*B Y X C"],
    boxes: Float[Array, "*B R 4"],
    size: tuple[int, int],
    *,
    context: int = 16,
    fill: float | Sequence[float] = 0.0,
) -> Float[Array, "*B R _h _w C"]:
    """Each box with the image around it, resampled to ``size`` whatever its aspect ratio (Girshick et al. 2014, R-CNN).

    The box is enlarged so that it fills ``size`` but for ``context`` pixels of the result on each side. Outside of the
    image there is ``fill`` (R-CNN: the mean of each channel). Interpolation is bilinear where the box is magnified.
    Where it shrinks, the triangle that weights the pixels is as wide as two pixels of the result (as in
    ``images.resize`` and Pillow): points sampled two pixels or more apart would alias. An empty box (``is_empty``)
    gives ``fill``. Images receive a gradient, boxes do not.

    Args:
      images: images of any dtype; integers become float32.
      boxes: boxes in pixels of the image; they may lie partly or wholly outside.
      size: height and width of the result, in pixels.
      context: pixels of the result between the box and each of its borders, less than half of ``size``.
      fill: one number, or one for each channel.

    Raises:
      ValueError: shapes do not fit, or an option is out of its range.
    """
    _check("warp_regions", images, boxes, size, 1.0)
    if context < 0 or 2 * context >= min(size):
        raise ValueError(f"warp_regions: context={context} on both sides leaves nothing of size={tuple(size)}")
    dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    wide = at_least_float32(dtype)
    colour = jnp.asarray(fill, wide)
    if colour.shape not in ((), images.shape[-1:]):
        raise ValueError(f"warp_regions: fill={fill} is not one number or one for each of {images.shape[-1]} channels")
    empty, boxes = _sound(boxes, float(max(size)))

    def run(images: Array, boxes: Array, empty: Array) -> Array:
        outside = jnp.broadcast_to(colour, images.shape[-1:])
        regions = warp(images.astype(wide) - outside[None, None, None], boxes, empty, _pair(size), context)
        return (regions + outside[None, None, None, None]).astype(dtype)

    return _flat(run, size, images, boxes, empty)


def _sound(boxes: Array, scale: float) -> tuple[Bool[Array, "*B R"], Float[Array, "*B R 4"]]:
    """Which boxes are empty, and the boxes in at least float32 with zeros for those; no gradient passes.

    A box whose size times ``scale`` overflows counts as empty.
    """
    boxes = lax.stop_gradient(boxes).astype(at_least_float32(boxes.dtype))
    fits = (jnp.abs(boxes) < jnp.finfo(boxes.dtype).max / (8 * max(scale, 1))).all(-1)
    empty = is_empty(boxes) | ~fits
    return empty, jnp.where(empty[..., None], jnp.zeros_like(boxes), boxes)


def _flat(function: Callable[..., Array], size: Sequence[int], images: Array, *regions: Array) -> Array:
    """``function`` of arrays with one batch dimension, for any leading dimensions."""
    batch, count, boxes = images.shape[:-3], math.prod(images.shape[:-3]), regions[0].shape[-2]
    if count == 0 or boxes == 0:
        dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.dtype(jnp.float32)
        return jnp.zeros((*batch, boxes, *size, images.shape[-1]), dtype)
    out = function(*(x.reshape(count, *x.shape[len(batch) :]) for x in (images, *regions)))
    return out.reshape(*batch, *out.shape[1:])


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return int(size[0]), int(size[1])


def _check(name: str, maps: Array, boxes: Array, size: Sequence[int], scale: float) -> None:
    if maps.ndim < 3 or boxes.ndim < 2 or boxes.shape[-1] != 4 or maps.shape[:-3] != boxes.shape[:-2]:
        raise ValueError(f"{name}: maps {maps.shape} ([*B, Y, X, F]) and boxes {boxes.shape} ([*B, R, 4]) do not fit")
    if 0 in maps.shape[-3:]:
        raise ValueError(f"{name}: maps {maps.shape} have no pixel or no channel")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name}: size={tuple(size)} must be two positive numbers (height, width)")
    if not 0 < scale < math.inf:
        raise ValueError(f"{name}: scale={scale} must be positive")
