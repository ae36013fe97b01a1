"""Fast R-CNN: the convolutions of an image are computed once, and its regions are pooled from the feature map."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.encoders.image import Backbone
from jaxseq.layers.dense import Dense
from jaxseq.models.detection.region_scores import RegionScores, decoded, scaled
from jaxseq.models.detection.regions import NormalizedBackbone, Pooling, RegionFeatures, pool_regions
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Float, Shaped


class RegionOutputs(NamedTuple):
    """Logits of the background (class 0) and K classes, and for each of the K classes the code of a better box."""

    logits: Float[Array, "*B R C"]  # C = K + 1
    deltas: Float[Array, "*B R K 4"]

    def scored(self, boxes: Float[Array, "*B R 4"], size: tuple[int, int]) -> RegionScores:
        """The probability of each class, and its box, for each proposed box of images of this size (height, width)."""
        codes = scaled(self.deltas, inverse=True)
        return RegionScores(decoded(codes, boxes, size), jax.nn.softmax(self.logits)[..., 1:])


class FastRCNN(nn.Module):
    """Fast R-CNN (Girshick 2015, https://arxiv.org/abs/1504.08083).

        map = backbone((pixels - mean) / std)
        x = fc7(fc6(pool(map, box)))                        for each box
        logits, deltas = classes(x), boxes(x)

    A box is projected on the map by dividing its coordinates by the backbone's stride. ``deltas`` are codes
    (``ops.encode_boxes``) divided by ``DELTA_SCALE``, class by class.

    Args:
      backbone: from normalized images to a map.
      num_classes: K, without the background.
      hidden: the width of fc6 and fc7.
      pooled_size: places of the pooled map along each axis.
      pooling: ``roi_max_pool``, as in the paper, or ``roi_align``, which does not round coordinates.
      dropout: the rate after fc6 and fc7.
    """

    backbone: Backbone
    num_classes: int
    hidden: int = 256
    pooled_size: int = 4
    pooling: Pooling = "roi_align"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def setup(self) -> None:
        """Creates the layers."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.image = NormalizedBackbone(self.backbone, self.dtype)
        self.region = RegionFeatures(self.hidden, self.dropout, **types)
        self.classes = Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), **types)
        self.boxes = Dense(4 * self.num_classes, kernel_init=nn.initializers.normal(0.001), **types)

    def feature_map(self, images: Shaped[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """The map that all regions of an image share."""
        return self.image(images)

    def pooled(self, feature_map: Float[Array, "*B Y X F"], boxes: Float[Array, "*B R 4"]) -> Float[Array, "*B R P"]:
        """The map under each box, pooled and flattened."""
        return pool_regions(self.pooling, feature_map, boxes, self.pooled_size, self.backbone.stride)

    def heads(self, pooled: Float[Array, "*B R P"]) -> RegionOutputs:
        """The two outputs for each pooled region."""
        x = self.region(pooled)
        wide = at_least_float32(self.dtype)
        logits, deltas = self.classes(x).astype(wide), self.boxes(x).astype(wide)
        return RegionOutputs(logits, deltas.reshape(*deltas.shape[:-1], self.num_classes, 4))

    def __call__(self, images: Shaped[Array, "*B Y X C"], boxes: Float[Array, "*B R 4"]) -> RegionOutputs:
        """The outputs for each box of images of pixels 0..255."""
        return self.heads(self.pooled(self.feature_map(images), boxes))
