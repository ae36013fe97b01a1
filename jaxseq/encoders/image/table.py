"""Image backbones by name."""

from functools import partial
from typing import Any

from jaxseq.encoders.image.backbone import Backbone
from jaxseq.encoders.image.efficientnet import EfficientNetLite0
from jaxseq.encoders.image.patches import Patches
from jaxseq.encoders.image.resnet import ResNet
from jaxseq.encoders.image.small_cnn import SmallCNN

BACKBONES: dict[str, Any] = {
    "small": SmallCNN,
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "efficientnet_lite0": EfficientNetLite0,
    "patches": Patches,
}
"""Every backbone by its name."""


def make_backbone(name: str, **fields: Any) -> Backbone:
    """The backbone of that name, with fields as its class takes them.

    Raises:
      ValueError: an unknown name; the known ones are listed.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    return BACKBONES[name](**fields)
