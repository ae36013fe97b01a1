"""Trained models with their vocabularies: text or images in, text out; and the tasks that they are trained on."""

from jaxseq.pipelines.caption_measures import CaptionLosses, Losses, attention_on_boxes, scene_slots
from jaxseq.pipelines.caption_tasks import Coco, Flickr, Folder, Karpathy, Scenes
from jaxseq.pipelines.captioner import ArraySource, Caption, Captioner, First, Rows
from jaxseq.pipelines.detection_measures import (
    detection_rows,
    file_image,
    found_in_files,
    objects_in_files,
    proposal_results,
)
from jaxseq.pipelines.detection_report import draw_detector_report, precision_table
from jaxseq.pipelines.detection_tasks import CocoInstances, DetectionScenes, Voc
from jaxseq.pipelines.detector import DetectionConfig, Detector
from jaxseq.pipelines.exporting import export_model
from jaxseq.pipelines.image_paths import image_paths, read_images
from jaxseq.pipelines.loading import Trained, load
from jaxseq.pipelines.pair_tasks import Dates, Digits, Files, Names, Reversal, Words
from jaxseq.pipelines.pretrained import FrozenEncoder, find_weights, read_backbone, with_backbone
from jaxseq.pipelines.saved import LoadedRun, Pipeline, load_run
from jaxseq.pipelines.search import SearchConfig, check_beams, check_decoding_memory
from jaxseq.pipelines.text_generator import TextGenerator, cut_at, token_bytes
from jaxseq.pipelines.translator import Translator
from jaxseq.pipelines.truncation_gradients import BiasRow, PathGradients, TruncationGradients, bias_rows
from jaxseq.pipelines.truncation_runs import TruncationRun, TruncationRuns
from jaxseq.pipelines.user_cores import RunAccess, check_user_cores, core_flags, user_cores

__all__ = [
    "ArraySource",
    "BiasRow",
    "Caption",
    "CaptionLosses",
    "Captioner",
    "Coco",
    "CocoInstances",
    "Dates",
    "DetectionConfig",
    "DetectionScenes",
    "Detector",
    "Digits",
    "Files",
    "First",
    "Flickr",
    "Folder",
    "FrozenEncoder",
    "Karpathy",
    "LoadedRun",
    "Losses",
    "Names",
    "PathGradients",
    "Pipeline",
    "Reversal",
    "Rows",
    "RunAccess",
    "Scenes",
    "SearchConfig",
    "TextGenerator",
    "Trained",
    "Translator",
    "TruncationGradients",
    "TruncationRun",
    "TruncationRuns",
    "Voc",
    "Words",
    "attention_on_boxes",
    "bias_rows",
    "check_beams",
    "check_decoding_memory",
    "check_user_cores",
    "core_flags",
    "cut_at",
    "detection_rows",
    "draw_detector_report",
    "export_model",
    "file_image",
    "find_weights",
    "found_in_files",
    "image_paths",
    "load",
    "load_run",
    "objects_in_files",
    "precision_table",
    "proposal_results",
    "read_backbone",
    "read_images",
    "scene_slots",
    "token_bytes",
    "user_cores",
    "with_backbone",
]
