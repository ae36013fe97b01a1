"""Boxes, non-maximum suppression, and features of regions: RoI align, RoI max pooling, warping."""

from jaxseq.ops.regions.api import (
    RoiAlignImplementation,
    RoiMaxPoolImplementation,
    roi_align,
    roi_max_pool,
    warp_regions,
)
from jaxseq.ops.regions.boxes import (
    box_area,
    box_coverage,
    box_iou,
    centres_to_corners,
    clip_boxes,
    corners_to_centres,
    decode_boxes,
    encode_boxes,
    is_empty,
    order_corners,
    paired_iou,
)
from jaxseq.ops.regions.nms import Detections, Kept, nms, nms_per_class
from jaxseq.ops.regions.reference import (
    nms_per_class_reference,
    nms_reference,
    roi_align_reference,
    roi_max_pool_reference,
    warp_regions_reference,
)

__all__ = [
    "Detections",
    "Kept",
    "RoiAlignImplementation",
    "RoiMaxPoolImplementation",
    "box_area",
    "box_coverage",
    "box_iou",
    "centres_to_corners",
    "clip_boxes",
    "corners_to_centres",
    "decode_boxes",
    "encode_boxes",
    "is_empty",
    "nms",
    "nms_per_class",
    "nms_per_class_reference",
    "nms_reference",
    "order_corners",
    "paired_iou",
    "roi_align",
    "roi_align_reference",
    "roi_max_pool",
    "roi_max_pool_reference",
    "warp_regions",
    "warp_regions_reference",
]
