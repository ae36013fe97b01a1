"""Image backbones by name."""

from typing import Any

from jaxseq.encoders.image.backbone import Backbone
from jaxseq.encoders.image.small_cnn import SmallCNN

BACKBONES: dict[str, Any] = {
    "small": SmallCNN,
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
