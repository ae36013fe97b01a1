"""Detectors of objects from proposed regions: R-CNN and Fast R-CNN."""

from jaxseq.models.detection.config import DetectorConfig
from jaxseq.models.detection.fast_rcnn import FastRCNN, RegionOutputs
from jaxseq.models.detection.linear_stages import (
    NEVER,
    LinearStageConfig,
    LinearStages,
    RegionExamples,
    apply_linear_stages,
    fit_linear_stages,
)
from jaxseq.models.detection.losses import RegionLoss, fast_rcnn_loss, region_loss
from jaxseq.models.detection.rcnn import RCNN, CropOutputs, map_regions
from jaxseq.models.detection.region_scores import RegionScores, detect
from jaxseq.models.detection.sampling import RegionSampling, RegionTargets, sample_regions

__all__ = [
    "NEVER",
    "RCNN",
    "CropOutputs",
    "DetectorConfig",
    "FastRCNN",
    "LinearStageConfig",
    "LinearStages",
    "RegionExamples",
    "RegionLoss",
    "RegionOutputs",
    "RegionSampling",
    "RegionScores",
    "RegionTargets",
    "apply_linear_stages",
    "detect",
    "fast_rcnn_loss",
    "fit_linear_stages",
    "map_regions",
    "region_loss",
    "sample_regions",
]
