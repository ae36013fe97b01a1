"""Images with objects in boxes: the embedded scenes and readers of users' formats. NumPy only, no JAX."""

from jaxseq.data.detection.batches import DetectionBatch, DetectionBatches, Proposals
from jaxseq.data.detection.corpus import DetectionCorpus, DetectionImages, Objects
from jaxseq.data.detection.scenes import DETECTION_SCENES, scene_detection_corpus

__all__ = [
    "DETECTION_SCENES",
    "DetectionBatch",
    "DetectionBatches",
    "DetectionCorpus",
    "DetectionImages",
    "Objects",
    "Proposals",
    "scene_detection_corpus",
]
