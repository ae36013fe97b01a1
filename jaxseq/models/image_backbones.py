"""The choice of an image backbone, which captioners and detectors share."""

from typing import Any

from jaxseq.encoders.image import BACKBONES, Backbone, make_backbone
from jaxseq.models.configs import Precision, dtypes

FROM_SCRATCH = ("small", "patches")
"""Backbones without published weights."""


def check_backbone(encoder: str, pretrained: bool | None) -> None:
    """Check the name of a backbone, and whether it can be pretrained.

    Raises:
        ValueError: an unknown name, or ``pretrained`` for a backbone without published weights.
    """
    if encoder not in BACKBONES:
        raise ValueError(f"encoder={encoder!r}; known: {', '.join(BACKBONES)}")
    if pretrained and encoder in FROM_SCRATCH:
        raise ValueError(f"pretrained needs an encoder with known weights, not encoder={encoder}")


def starts_trained(encoder: str, pretrained: bool | None) -> bool:
    """``pretrained``, or if it is None, whether the encoder is efficientnet_lite0, whose weights can be installed."""
    return encoder == "efficientnet_lite0" if pretrained is None else pretrained


def build_backbone(encoder: str, trained: bool, precision: Precision, **fields: Any) -> Backbone:
    """The backbone: with stored statistics as norms if it is ``trained``, else with group norms."""
    fields |= dtypes(precision)
    if encoder not in FROM_SCRATCH:
        fields |= {"norm": "frozen_batch" if trained else "group"}
    return make_backbone(encoder, **fields)
