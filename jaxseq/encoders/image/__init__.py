"""Image encoders: backbones from images to feature maps, and feature maps as a memory of regions."""

from jaxseq.encoders.image.backbone import Backbone
from jaxseq.encoders.image.classifier import ImageClassifier
from jaxseq.encoders.image.efficientnet import EfficientNetLite0
from jaxseq.encoders.image.image_encoder import ImageEncoder, RegionPositions, pooled
from jaxseq.encoders.image.patches import Patches
from jaxseq.encoders.image.pretrained import entries, ignored, pretrained_parameters
from jaxseq.encoders.image.resnet import ResNet
from jaxseq.encoders.image.small_cnn import SmallCNN
from jaxseq.encoders.image.table import BACKBONES, make_backbone

__all__ = [
    "BACKBONES",
    "Backbone",
    "EfficientNetLite0",
    "ImageClassifier",
    "ImageEncoder",
    "Patches",
    "RegionPositions",
    "ResNet",
    "SmallCNN",
    "entries",
    "ignored",
    "make_backbone",
    "pooled",
    "pretrained_parameters",
]
