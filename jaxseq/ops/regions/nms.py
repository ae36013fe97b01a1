"""Greedy non-maximum suppression with static shapes."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.regions.boxes import box_iou, is_empty, without_empty
from jaxseq.typing import Array, Bool, Float, Int

_TILE = 128
_State = tuple[Array, Array, Array, Array]


class Kept(NamedTuple):
    """The boxes that survive: ``indices`` into the boxes, best first; where ``valid`` is False the index is 0."""

    indices: Int[Array, "*B K"]
    valid: Bool[Array, "*B K"]


class Detections(NamedTuple):
    """The boxes that survive in any class, best first; zeros where ``valid`` is False."""

    boxes: Float[Array, "*B K 4"]
    scores: Float[Array, "*B K"]
    classes: Int[Array, "*B K"]
    valid: Bool[Array, "*B K"]


def nms(
    boxes: Float[Array, "*B N 4"],
    scores: Float[Array, "*B N"],
    *,
    iou_threshold: float,
    max_outputs: int,
    score_threshold: float | None = None,
) -> Kept:
    """Greedy suppression: takes boxes in order of their scores, each unless its IoU with a taken one is too large.

    A box is suppressed if ``IoU > iou_threshold`` for a box that was taken before; suppressed boxes suppress nothing.
    Equal scores are taken in order of index. Never taken are empty boxes (``is_empty``), scores that are NaN or
    ``-inf``, and, with a ``score_threshold``, scores that are not greater than it.

    Boxes are processed in tiles, in order of score. A tile is compared with the boxes taken so far, at most
    ``max_outputs``, and with itself; inside it the recursion "taken, if no taken box of the tile suppresses it" is
    iterated to its fixed point, which is unique. The loop ends when ``max_outputs`` boxes are taken or no box is left.
    Memory is O(N + max_outputs · tile).

    The result is that of ``torchvision.ops.nms`` and, for each class, of ONNX ``NonMaxSuppression`` (there, boxes may
    be given by any two corners, ``order_corners``, or by centres, ``centres_to_corners``), but for empty boxes: both
    take them. No gradient passes.

    Args:
      boxes: ``x1 y1 x2 y2``.
      scores: one score a box.
      iou_threshold: from 0 to 1.
      max_outputs: the number K of places in the result, at least 1; places that are not needed are invalid.
      score_threshold: the score that a box must exceed.

    Raises:
      ValueError: shapes do not fit, or an option is out of its range.
    """
    if boxes.ndim < 2 or boxes.shape[-1] != 4 or scores.shape != boxes.shape[:-1]:
        raise ValueError(f"nms: boxes {boxes.shape} ([*B, N, 4]) and scores {scores.shape} ([*B, N]) do not fit")
    _check_options("nms", iou_threshold, max_outputs=max_outputs)
    batch, count = scores.shape[:-1], scores.shape[-1]
    if count == 0 or math.prod(batch) == 0:
        return Kept(jnp.zeros((*batch, max_outputs), jnp.int32), jnp.zeros((*batch, max_outputs), bool))
    boxes, scores = lax.stop_gradient((boxes, scores))
    run = partial(_nms, iou_threshold=iou_threshold, places=max_outputs, score_threshold=score_threshold, tile=_TILE)
    kept = jax.vmap(run)(boxes.reshape(-1, count, 4), scores.reshape(-1, count))
    return jax.tree.map(lambda x: x.reshape(*batch, max_outputs), kept)


def nms_per_class(
    boxes: Float[Array, "*boxes 4"],
    scores: Float[Array, "*B N C"],
    *,
    iou_threshold: float,
    max_per_class: int,
    max_outputs: int,
    score_threshold: float | None = None,
) -> Detections:
    """``nms`` of each class apart, then the ``max_outputs`` best of all classes, in order of score.

    Equal scores are in order of class, then of index. ``batched_nms`` of torchvision is this function with the scores
    of a box as ``-inf`` in all classes but its own.

    Args:
      boxes: ``[*B, N, 4]``, one box for all classes of a proposal, or ``[*B, N, C, 4]``, one for each (regressed per
      class). scores: one score for each proposal and class (without the background).
      iou_threshold: as for ``nms``.
      max_per_class: the most boxes of a class.
      max_outputs: the number K of places in the result.
      score_threshold: as for ``nms``.

    Raises:
      ValueError: shapes do not fit, or an option is out of its range.
    """
    shared = boxes.ndim == scores.ndim
    if scores.ndim < 2 or boxes.shape[-1] != 4 or boxes.shape[:-1] != (scores.shape[:-1] if shared else scores.shape):
        message = f"boxes {boxes.shape} ([*B, N, 4] or [*B, N, C, 4]) and scores {scores.shape} ([*B, N, C]) do not fit"
        raise ValueError(f"nms_per_class: {message}")
    _check_options("nms_per_class", iou_threshold, max_per_class=max_per_class, max_outputs=max_outputs)
    *batch, count, classes = scores.shape
    by_class = jnp.moveaxis(scores, -1, -2)
    if shared:
        each = jnp.broadcast_to(boxes[..., None, :, :], (*batch, classes, count, 4))
    else:
        each = jnp.moveaxis(boxes, -2, -3)
    places = min(max_per_class, max(count, 1))
    options = {"iou_threshold": iou_threshold, "score_threshold": score_threshold}
    kept = nms(each, by_class, max_outputs=places, **options)  # type: ignore[arg-type]
    if count == 0 or classes == 0:
        return _padded(each.reshape(*batch, 0, 4), by_class.reshape(*batch, 0), max_outputs)
    found = jnp.take_along_axis(by_class, kept.indices, axis=-1)
    corners = jnp.take_along_axis(each, kept.indices[..., None], axis=-2)
    ranks = jnp.where(kept.valid, found, -jnp.inf).reshape(*batch, classes * places)
    order = jnp.argsort(-ranks, axis=-1, stable=True)[..., :max_outputs]
    valid = jnp.take_along_axis(kept.valid.reshape(ranks.shape), order, axis=-1)
    corners = jnp.take_along_axis(corners.reshape(*ranks.shape, 4), order[..., None], axis=-2)
    found = jnp.take_along_axis(found.reshape(ranks.shape), order, axis=-1)
    return _padded(corners, found, max_outputs, order // places, valid)


def _padded(
    boxes: Array, scores: Array, places: int, classes: Array | None = None, valid: Array | None = None
) -> Detections:
    """All as arrays of ``places``, zeros where not valid."""
    if classes is None or valid is None:
        classes, valid = jnp.zeros(scores.shape, jnp.int32), jnp.zeros(scores.shape, bool)
    missing = places - scores.shape[-1]
    boxes = jnp.where(valid[..., None], boxes, jnp.zeros_like(boxes))
    scores, classes = (jnp.where(valid, x, jnp.zeros_like(x)) for x in (scores, classes.astype(jnp.int32)))

    def pad(x: Array, axis: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, missing)
        return jnp.pad(x, widths)

    return Detections(pad(boxes, boxes.ndim - 2), *(pad(x, x.ndim - 1) for x in (scores, classes, valid)))


def _check_options(name: str, iou_threshold: float, **counts: int) -> None:
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{name}: iou_threshold={iou_threshold} must be from 0 to 1")
    for option, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: {option}={value} must be at least 1")


@partial(jax.jit, static_argnames=("iou_threshold", "places", "score_threshold", "tile"))
def _nms(
    boxes: Array, scores: Array, *, iou_threshold: float, places: int, score_threshold: float | None, tile: int
) -> Kept:
    """``nms`` of one list of boxes ``[N, 4]``."""
    count = boxes.shape[0]
    tile = min(tile, count)
    least = -jnp.inf if score_threshold is None else score_threshold
    candidates = (scores > least) & ~is_empty(boxes)
    ranks = jnp.where(candidates, scores, jnp.full_like(scores, -jnp.inf))
    order = jnp.argsort(-ranks, stable=True).astype(jnp.int32)
    padding = -count % tile
    ordered = jnp.pad(jnp.take(without_empty(boxes), order, axis=0), ((0, padding), (0, 0)))
    order = jnp.pad(order, (0, padding))
    end = candidates.sum(dtype=jnp.int32)
    places_of_tile = jnp.arange(tile, dtype=jnp.int32)
    earlier = places_of_tile[:, None] < places_of_tile[None, :]

    def unfinished(state: _State) -> Array:
        start, taken, *_ = state
        return (start < end) & (taken < places)

    def step(state: _State) -> _State:
        start, taken, kept_boxes, kept = state
        these = lax.dynamic_slice_in_dim(ordered, start, tile)
        free = (places_of_tile < end - start) & ~(box_iou(kept_boxes, these) > iou_threshold).any(0)
        suppresses = (box_iou(these, these) > iou_threshold) & earlier
        stays = _fixed_point(free, suppresses)
        position = jnp.where(stays, taken + jnp.cumsum(stays, dtype=jnp.int32) - 1, places)
        kept_boxes = kept_boxes.at[position].set(these, mode="drop")
        kept = kept.at[position].set(lax.dynamic_slice_in_dim(order, start, tile), mode="drop")
        return start + tile, taken + stays.sum(dtype=jnp.int32), kept_boxes, kept

    zero = jnp.zeros((), jnp.int32)
    initial = zero, zero, jnp.zeros((places, 4), boxes.dtype), jnp.zeros(places, jnp.int32)
    _, taken, _, kept = lax.while_loop(unfinished, step, initial)
    return Kept(kept, jnp.arange(places, dtype=jnp.int32) < taken)


def _fixed_point(free: Array, suppresses: Array) -> Array:
    """The solution of ``stays_j = free_j and no i: stays_i and suppresses_ij``, where i < j."""

    def changed(state: tuple[Array, Array]) -> Array:
        return (state[0] != state[1]).any()

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays = state[1]
        return stays, free & ~(stays[:, None] & suppresses).any(0)

    return lax.while_loop(changed, step, (jnp.zeros_like(free), step((free, free))[1]))[1]
