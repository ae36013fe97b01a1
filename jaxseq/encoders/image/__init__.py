"""Image encoders: backbones from images to feature maps, and feature maps as a memory of regions."""

from jaxseq.encoders.image.backbone import Backbone
from jaxseq.encoders.image.image_encoder import ImageEncoder, RegionPositions, pooled
from jaxseq.encoders.image.small_cnn import SmallCNN
from jaxseq.encoders.image.table import BACKBONES, make_backbone

__all__ = ["BACKBONES", "Backbone", "ImageEncoder", "RegionPositions", "SmallCNN", "make_backbone", "pooled"]
