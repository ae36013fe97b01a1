"""Boxes ``x1 y1 x2 y2`` in continuous pixels: area, overlap, the code of box regression, other conventions.

Pixel i covers i to i + 1, so a box is ``x2 - x1`` wide. A box is *empty* if ``x2 <= x1`` or ``y2 <= y1`` or if a
coordinate is not finite. ``0 0 0 0`` is the empty box that pads lists. Empty boxes have area 0 and IoU 0, and all
gradients are finite.
"""

import math

import jax.numpy as jnp

from jaxseq.typing import Array, Bool, Float

MAX_LOG_SCALE = math.log(1000 / 16)
"""The largest logarithm of a size ratio that ``decode_boxes`` takes by default (Detectron's): 62.5 times the anchor."""


def is_empty(boxes: Float[Array, "*B 4"]) -> Bool[Array, "*B"]:
    """True for boxes without area, inverted boxes, and boxes with a coordinate that is NaN or infinite."""
    x1, y1, x2, y2 = _coordinates(boxes)
    return ~((x2 > x1) & (y2 > y1) & jnp.isfinite(boxes).all(-1))


def without_empty(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """The boxes, with every empty one as ``0 0 0 0``."""
    return jnp.where(is_empty(boxes)[..., None], jnp.zeros_like(boxes), boxes)


def box_area(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """``(x2 - x1) (y2 - y1)`` in square pixels; 0 for empty boxes."""
    x1, y1, x2, y2 = _coordinates(without_empty(boxes))
    return (x2 - x1) * (y2 - y1)


def box_iou(a: Float[Array, "*B N 4"], b: Float[Array, "*B M 4"]) -> Float[Array, "*B N M"]:
    """``|a_n ∩ b_m| / |a_n ∪ b_m|`` of all pairs; 0 where a box is empty.

    Raises:
      ValueError: the leading dimensions or dtypes of ``a`` and ``b`` differ.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[:-2] != b.shape[:-2] or a.dtype != b.dtype:
        raise ValueError(f"box_iou: a {a.dtype}{a.shape} and b {b.dtype}{b.shape} must be [*B, N, 4] and [*B, M, 4]")
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def box_coverage(a: Float[Array, "*B N 4"], b: Float[Array, "*B M 4"]) -> Float[Array, "*B N M"]:
    """``|a_n ∩ b_m| / |a_n|`` of all pairs, the part of a box that another covers; 0 where a box is empty.

    Raises:
      ValueError: as ``box_iou``.
    """
    iou = box_iou(a, b)
    areas, others = box_area(a)[..., :, None], box_area(b)[..., None, :]
    shared = iou * (areas + others) / (1 + iou)
    return jnp.where(areas > 0, shared / jnp.where(areas > 0, areas, jnp.ones_like(areas)), jnp.zeros_like(shared))


def paired_iou(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> Float[Array, "*#B"]:
    """The IoU of each box with its partner; the shapes of ``a`` and ``b`` broadcast."""
    a, b = without_empty(a), without_empty(b)
    areas = box_area(a), box_area(b)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _coordinates(a), _coordinates(b)
    zero = jnp.zeros((), a.dtype)
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), zero)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), zero)
    shared = width * height
    union = areas[0] + areas[1] - shared
    defined = (union > 0) & jnp.isfinite(union)
    return jnp.where(defined, shared, zero) / jnp.where(defined, union, jnp.ones_like(union))


def encode_boxes(boxes: Float[Array, "*B 4"], anchors: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """The offsets ``dx dy dw dh`` that turn anchors into boxes (Girshick et al. 2014, appendix C).

    With centres (x, y) and sizes (w, h) of a box and (x_a, y_a), (w_a, h_a) of its anchor::

        dx = (x - x_a) / w_a      dy = (y - y_a) / h_a      dw = log(w / w_a)      dh = log(h / h_a)

    The offsets are zeros if the box or its anchor is empty.

    Raises:
      ValueError: the shapes or dtypes differ.
    """
    _check_pair("encode_boxes", boxes, anchors)
    defined = ~(is_empty(boxes) | is_empty(anchors))[..., None]
    unit = _unit_box(boxes)
    x, y, w, h = _coordinates(corners_to_centres(jnp.where(defined, boxes, unit)))
    xa, ya, wa, ha = _coordinates(corners_to_centres(jnp.where(defined, anchors, unit)))
    deltas = jnp.stack([(x - xa) / wa, (y - ya) / ha, jnp.log(w / wa), jnp.log(h / ha)], axis=-1)
    return jnp.where(defined, deltas, jnp.zeros_like(deltas))


def decode_boxes(
    deltas: Float[Array, "*B 4"], anchors: Float[Array, "*B 4"], *, max_log_scale: float = MAX_LOG_SCALE
) -> Float[Array, "*B 4"]:
    """The boxes that ``encode_boxes`` coded as offsets from these anchors.

    ``dw`` and ``dh`` are clipped from above to ``max_log_scale``, so that ``exp`` does not overflow. The result is
    ``0 0 0 0`` if the anchor is empty. It is not clipped to an image (``clip_boxes``).

    Raises:
      ValueError: the shapes or dtypes differ.
    """
    _check_pair("decode_boxes", deltas, anchors)
    defined = ~is_empty(anchors)[..., None]
    xa, ya, wa, ha = _coordinates(corners_to_centres(jnp.where(defined, anchors, _unit_box(anchors))))
    dx, dy, dw, dh = _coordinates(jnp.where(defined, deltas, jnp.zeros_like(deltas)))
    limit = jnp.asarray(max_log_scale, deltas.dtype)
    w, h = wa * jnp.exp(jnp.minimum(dw, limit)), ha * jnp.exp(jnp.minimum(dh, limit))
    boxes = centres_to_corners(jnp.stack([xa + dx * wa, ya + dy * ha, w, h], axis=-1))
    return jnp.where(defined, boxes, jnp.zeros_like(boxes))


def clip_boxes(boxes: Float[Array, "*B 4"], size: tuple[int, int]) -> Float[Array, "*B 4"]:
    """The part of each box within an image of ``size`` (height, width); empty (without area) if it lies outside."""
    height, width = size
    limits = jnp.broadcast_to(jnp.asarray([width, height, width, height], boxes.dtype), boxes.shape)
    return jnp.clip(boxes, jnp.zeros_like(boxes), limits)


def corners_to_centres(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """``x1 y1 x2 y2`` as centre and size, ``x y w h``."""
    x1, y1, x2, y2 = _coordinates(boxes)
    return jnp.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=-1)


def centres_to_corners(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Centre and size ``x y w h`` as ``x1 y1 x2 y2``."""
    x, y, w, h = _coordinates(boxes)
    return jnp.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)


def order_corners(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """Boxes given by any two opposite corners, as in ONNX, with ``x1 <= x2`` and ``y1 <= y2``."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([jnp.minimum(first, second), jnp.maximum(first, second)], axis=-1)


def _coordinates(boxes: Array) -> tuple[Array, Array, Array, Array]:
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _unit_box(boxes: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray([0, 0, 1, 1], boxes.dtype), boxes.shape)


def _check_pair(name: str, first: Array, anchors: Array) -> None:
    if first.shape != anchors.shape or first.shape[-1:] != (4,) or first.dtype != anchors.dtype:
        both = f"{first.dtype}{first.shape} and anchors {anchors.dtype}{anchors.shape}"
        raise ValueError(f"{name}: {both} must have one dtype and one shape [*B, 4]")
