"""Images and their captions: the embedded scenes and readers of users' formats. NumPy only, no JAX."""

from jaxseq.data.images.captioned import CaptionCorpus, CaptionedImages, ImageSource

__all__ = ["CaptionCorpus", "CaptionedImages", "ImageSource"]
