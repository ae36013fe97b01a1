"""The result that both detectors have in common: a score and a box for each region and class."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxseq.ops.regions import Detections, box_area, clip_boxes, decode_boxes, nms_per_class
from jaxseq.typing import Array, Float

DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)
"""Fast R-CNN predicts box codes divided by these, which have a deviation of about 1 (as in py-faster-rcnn)."""


class RegionScores(NamedTuple):
    """A box and a score of each region for each class; the boxes lie within the image."""

    boxes: Float[Array, "*B R K 4"]
    scores: Float[Array, "*B R K"]


def decoded(
    codes: Float[Array, "*B R K 4"], boxes: Float[Array, "*B R 4"], size: tuple[int, int]
) -> Float[Array, "*B R K 4"]:
    """The boxes of codes (``ops.encode_boxes``) of each class, clipped to the image (height, width)."""
    return clip_boxes(decode_boxes(codes, jnp.broadcast_to(boxes[..., None, :], codes.shape)), size)


def scaled(codes: Float[Array, "*B 4"], *, inverse: bool = False) -> Float[Array, "*B 4"]:
    """Codes divided by ``DELTA_SCALE``, or with ``inverse`` multiplied by it."""
    scale = jnp.asarray(DELTA_SCALE, codes.dtype).reshape((1,) * (codes.ndim - 1) + (4,))
    return codes * scale if inverse else codes / scale


def detect(
    regions: RegionScores,
    proposals: Float[Array, "*B R 4"],
    *,
    score_threshold: float,
    iou_threshold: float = 0.3,
    max_outputs: int = 100,
) -> Detections:
    """The detections of each image: non-maximum suppression of each class, then the best of all classes.

    Empty proposals, which fill up lists of boxes, are no detections.
    """
    scores = jnp.where((box_area(proposals) > 0)[..., None], regions.scores, -jnp.inf)
    return nms_per_class(
        regions.boxes,
        scores,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_per_class=max_outputs,
        max_outputs=max_outputs,
    )
