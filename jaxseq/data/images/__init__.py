"""Images and their captions: the embedded scenes and readers of users' formats. NumPy only, no JAX."""

from jaxseq.data.images.batches import CaptionBatch, CaptionBatches, FingerprintedArrays, IndexedArrays
from jaxseq.data.images.captioned import CaptionCorpus, CaptionedImages, ImageSource
from jaxseq.data.images.decoding import ImageError, ResizeMode, read_image
from jaxseq.data.images.features import FeatureCache
from jaxseq.data.images.files import ImageFiles
from jaxseq.data.images.found_files import ImageOptions
from jaxseq.data.images.json_captions import read_coco_captions, read_karpathy
from jaxseq.data.images.line_captions import read_caption_tsv, read_flickr
from jaxseq.data.images.prefetch import Prefetch
from jaxseq.data.images.scene_captions import CaptionSlots, Description, caption_slots, mentions
from jaxseq.data.images.scene_layouts import SceneDesign
from jaxseq.data.images.scenes import Scene, SceneImages, SceneObject, scene_corpus

__all__ = [
    "CaptionBatch",
    "CaptionBatches",
    "CaptionCorpus",
    "CaptionSlots",
    "CaptionedImages",
    "Description",
    "FeatureCache",
    "FingerprintedArrays",
    "ImageError",
    "ImageFiles",
    "ImageOptions",
    "ImageSource",
    "IndexedArrays",
    "Prefetch",
    "ResizeMode",
    "Scene",
    "SceneDesign",
    "SceneImages",
    "SceneObject",
    "caption_slots",
    "mentions",
    "read_caption_tsv",
    "read_coco_captions",
    "read_flickr",
    "read_image",
    "read_karpathy",
    "scene_corpus",
]
