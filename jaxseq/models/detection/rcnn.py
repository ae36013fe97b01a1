"""R-CNN: every region is cut out of the image, warped to a fixed size, and put through the network by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.encoders.image import Backbone
from jaxseq.layers.dense import Dense
from jaxseq.models.detection.regions import NormalizedBackbone, RegionFeatures
from jaxseq.ops.images import resize
from jaxseq.ops.regions import warp_regions
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Float, PyTree, Shaped

CHUNK = 64
"""Regions that go through the network at once when an image has more."""


class CropOutputs(NamedTuple):
    """The outputs of R-CNN's network for each region."""

    logits: Float[Array, "*B R C"]  # of the background (class 0) and K classes: fine-tuning alone uses them
    features: Float[Array, "*B R H"]  # fc7: what the support vector machines read
    pooled: Float[Array, "*B R P"]  # the pooled map: what the regression of boxes reads


class RCNN(nn.Module):
    """The network of R-CNN (Girshick et al. 2014, https://arxiv.org/abs/1311.2524), without its linear stages.

        map = backbone((warp(image, box) - mean) / std)      for each box
        pooled = resize(map);   features = fc7(fc6(pooled));   logits = classes(features)

    It is fine-tuned as a classifier of regions. Support vector machines on ``features`` and a regression on ``pooled``
    then make the detector (``LinearStages``). The layers are those of ``FastRCNN``, with a pooled map of the same size.

    Args:
      backbone: from normalized images to a map.
      num_classes: K, without the background.
      hidden: the width of fc6 and fc7.
      crop_size: height and width of a warped region.
      context: pixels around the box in the warped region, on each side (the paper: 16 of 227).
      pooled_size: places of the pooled map along each axis; bilinear, with a triangle filter that averages.
      dropout: the rate after fc6 and fc7.
    """

    backbone: Backbone
    num_classes: int
    hidden: int = 256
    crop_size: int = 32
    context: int = 2
    pooled_size: int = 4
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def setup(self) -> None:
        """Creates the layers."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.image = NormalizedBackbone(self.backbone, self.dtype)
        self.region = RegionFeatures(self.hidden, self.dropout, **types)
        self.classes = Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), **types)

    def crops(self, images: Shaped[Array, "*B Y X C"], boxes: Float[Array, "*B R 4"]) -> Float[Array, "*B R _Y _X C"]:
        """The warped regions, in pixels; what lies outside of the image is the backbone's mean."""
        size = self.crop_size, self.crop_size
        return warp_regions(images.astype(jnp.float32), boxes, size, context=self.context, fill=self.backbone.mean)

    def feature_map(self, crops: Float[Array, "*B R Y X C"]) -> Float[Array, "*B R _Y _X F"]:
        """The map of each warped region."""
        return self.image(crops)

    def heads(self, feature_map: Float[Array, "*B R Y X F"]) -> CropOutputs:
        """The outputs for the map of each region."""
        pooled = resize(feature_map, (self.pooled_size, self.pooled_size))
        pooled = pooled.reshape(*pooled.shape[:-3], -1)
        features = self.region(pooled)
        wide = at_least_float32(self.dtype)
        return CropOutputs(self.classes(features).astype(wide), features.astype(wide), pooled.astype(wide))

    def __call__(self, images: Shaped[Array, "*B Y X C"], boxes: Float[Array, "*B R 4"]) -> CropOutputs:
        """The outputs for each box of images of pixels 0..255."""
        return self.heads(self.feature_map(self.crops(images, boxes)))


def map_regions(
    function: Callable[[CropOutputs, Float[Array, "R 4"]], PyTree],
    model: RCNN,
    variables: PyTree,
    images: Shaped[Array, "B Y X C"],
    boxes: Float[Array, "B R 4"],
    *,
    chunk: int = CHUNK,
) -> PyTree:
    """``function(outputs, boxes)`` of the regions of each image, ``chunk`` regions at a time.

    Of all regions only the results ``[B R ...]`` are in memory at once, not the crops and the outputs of ``model``.
    """
    regions = boxes.shape[1]
    chunks = -(-regions // chunk)
    padded = jnp.pad(boxes, ((0, 0), (0, chunks * chunk - regions), (0, 0)))

    def of_image(pair: tuple[Array, Array]) -> PyTree:
        image, parts = pair
        return jax.lax.map(lambda part: function(cast(Any, model.apply(variables, image, part)), part), parts)

    outputs = jax.lax.map(of_image, (images, padded.reshape(len(boxes), chunks, chunk, 4)))
    return jax.tree.map(lambda x: x.reshape(len(boxes), chunks * chunk, *x.shape[3:])[:, :regions], outputs)
