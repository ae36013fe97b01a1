"""Images with objects in boxes: the embedded scenes and readers of users' formats. NumPy only, no JAX."""

from jaxseq.data.detection.batches import DetectionBatch, DetectionBatches
from jaxseq.data.detection.coco import read_coco_instances, write_coco_corpus, write_coco_instances
from jaxseq.data.detection.coco_results import (
    CocoIds,
    CocoResults,
    ScoredBoxes,
    read_coco_ids,
    read_coco_results,
    write_coco_results,
)
from jaxseq.data.detection.corpus import DetectionCorpus, DetectionImages, Objects
from jaxseq.data.detection.scenes import DETECTION_SCENES, scene_detection_corpus
from jaxseq.data.detection.voc import read_voc

__all__ = [
    "DETECTION_SCENES",
    "CocoIds",
    "CocoResults",
    "DetectionBatch",
    "DetectionBatches",
    "DetectionCorpus",
    "DetectionImages",
    "Objects",
    "ScoredBoxes",
    "read_coco_ids",
    "read_coco_instances",
    "read_coco_results",
    "read_voc",
    "scene_detection_corpus",
    "write_coco_corpus",
    "write_coco_instances",
    "write_coco_results",
]
