"""Images and their captions: the embedded scenes and readers of users' formats. NumPy only, no JAX."""

from jaxseq.data.images.batches import CaptionBatch, CaptionBatches, IndexedArrays
from jaxseq.data.images.captioned import CaptionCorpus, CaptionedImages, ImageSource
from jaxseq.data.images.decoding import ImageError, ResizeMode, read_image
from jaxseq.data.images.files import ImageFiles
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
    "ImageError",
    "ImageFiles",
    "ImageSource",
    "IndexedArrays",
    "ResizeMode",
    "Scene",
    "SceneDesign",
    "SceneImages",
    "SceneObject",
    "caption_slots",
    "mentions",
    "read_image",
    "scene_corpus",
]
