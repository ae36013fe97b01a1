"""The config of a detector."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias, get_args

from jaxseq.encoders.image import Backbone
from jaxseq.models.configs import Precision, check_fields, dtypes
from jaxseq.models.detection.fast_rcnn import FastRCNN
from jaxseq.models.detection.rcnn import RCNN
from jaxseq.models.detection.regions import Pooling
from jaxseq.models.detection.sampling import RegionSampling
from jaxseq.models.image_backbones import FROM_SCRATCH, build_backbone, check_backbone, starts_trained

DetectorName: TypeAlias = Literal["rcnn", "fast_rcnn"]

CONTEXT = Fraction(16, 227)
"""Context on each side of a warped region, as a fraction of its size (R-CNN)."""


@dataclass(frozen=True)
class DetectorConfig:
    """R-CNN or Fast R-CNN, with the same backbone and the same layers for each region.

    Raises:
        ValueError: a value out of range, an unknown encoder, or an option that the model does not read.
    """

    model: DetectorName = "fast_rcnn"
    """rcnn computes the convolutions of every region, fast_rcnn those of the image."""
    encoder: str = "small"
    """A name in jaxseq.encoders.image.BACKBONES."""
    pretrained: bool | None = None
    """The encoder starts as a trained network, with its norms' stored statistics; without it, group norms. By default
    for efficientnet_lite0; never for small and patches."""
    hidden: int = 256
    """Width of the two layers over the pooled map of a region (the paper: 4096)."""
    pooled_size: int = 4
    """Places of the pooled map along each axis (the paper: 7 or 6, for regions of more pixels)."""
    pooling: Pooling | None = None
    """roi_max_pool rounds a region to places of the map, as the paper does; roi_align, the default, interpolates; read
    by fast_rcnn."""
    dropout: float = 0.0
    """Dropout rate of these layers (the paper: 0.5)."""
    regions: int | None = None
    """Regions of an image in a training step, by default 64, for rcnn 16; at most a quarter shows an object."""
    crop_size: int | None = None
    """Side of a warped region in pixels, by default 32 for small and patches, 224 for the others; read by rcnn."""
    context: int | None = None
    """Pixels around the box in a warped region on each side, by default 16/227 of crop_size; read by rcnn."""
    precision: Precision = "float32"
    """Dtypes: float32 throughout, or bfloat16 for activations and products and float32 for parameters and sums."""

    def __post_init__(self) -> None:
        for name, known in {"model": get_args(DetectorName), "pooling": (None, *get_args(Pooling))}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; known: {', '.join(filter(None, known))}")
        check_backbone(self.encoder, self.pretrained)
        check_fields(self, {"hidden": 1, "pooled_size": 1, "regions": 1, "crop_size": 1, "context": 0})
        for name, reader in {"crop_size": "rcnn", "context": "rcnn", "pooling": "fast_rcnn"}.items():
            if getattr(self, name) is not None and self.model != reader:
                told = f"{name}={getattr(self, name)} is an option of model={reader}"
                raise ValueError(f"{told}, not of model={self.model}")
        if self.model == "rcnn" and 2 * self.crop[1] >= self.crop[0]:
            raise ValueError(f"context={self.crop[1]} on both sides leaves nothing of crop_size={self.crop[0]}")

    @property
    def default_steps(self) -> int:
        """The training steps of an experiment by default."""
        return 1200 if self.model == "rcnn" else 3000

    @property
    def starts_trained(self) -> bool:
        """Whether the encoder is pretrained."""
        return starts_trained(self.encoder, self.pretrained)

    @property
    def crop(self) -> tuple[int, int]:
        """``crop_size`` and ``context``, or their defaults."""
        size = self.crop_size or (32 if self.encoder in FROM_SCRATCH else 224)
        return size, round(size * CONTEXT) if self.context is None else self.context

    @property
    def sampling(self) -> RegionSampling:
        """The regions of an image that are trained on: the background of R-CNN includes regions without an object."""
        if self.model == "rcnn":
            return RegionSampling(self.regions or 16, background_iou=(0.0, 0.5))
        return RegionSampling(self.regions or 64, background_iou=(0.1, 0.5))

    def backbone(self) -> Backbone:
        """The backbone: images to a feature map."""
        return build_backbone(self.encoder, self.starts_trained, self.precision)

    def build(self, num_classes: int) -> RCNN | FastRCNN:
        """The model for K classes."""
        fields: dict[str, Any] = {"hidden": self.hidden, "pooled_size": self.pooled_size}
        fields |= {"dropout": self.dropout, **dtypes(self.precision)}
        if self.model == "fast_rcnn":
            return FastRCNN(self.backbone(), num_classes, pooling=self.pooling or "roi_align", **fields)
        size, context = self.crop
        return RCNN(self.backbone(), num_classes, crop_size=size, context=context, **fields)
