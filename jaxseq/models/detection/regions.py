"""The layers that detectors apply to the pooled feature map of each region."""

from typing import Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.encoders.image import Backbone
from jaxseq.layers.dense import Dense
from jaxseq.ops.images import normalize
from jaxseq.ops.regions import roi_align, roi_max_pool
from jaxseq.typing import Array, DType, Float, Shaped

Pooling: TypeAlias = Literal["roi_max_pool", "roi_align"]


class NormalizedBackbone(nn.Module):
    """``backbone((pixels - mean) / std)``."""

    backbone: Backbone
    dtype: DType = jnp.float32

    def __call__(self, images: Shaped[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """The feature map of images of pixels 0..255."""
        return self.backbone(normalize(images, self.backbone.mean, self.backbone.std, self.dtype))


class RegionFeatures(nn.Module):
    """Two fully connected layers with ReLU over the flattened pooled map of a region (fc6 and fc7 of R-CNN)."""

    hidden: int
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, pooled: Float[Array, "*B R P"]) -> Float[Array, "*B R H"]:
        """One vector for each region; dropout is active exactly if a ``dropout`` key is given."""
        x = pooled.astype(self.dtype)
        for name in ("fc6", "fc7"):
            x = nn.relu(Dense(self.hidden, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x))
            if self.dropout:
                x = nn.Dropout(self.dropout)(x, deterministic=not self.has_rng("dropout"))
        return x


def pool_regions(
    pooling: Pooling, feature_map: Float[Array, "*B Y X F"], boxes: Float[Array, "*B R 4"], size: int, stride: int
) -> Float[Array, "*B R P"]:
    """The map under each box, pooled to ``size x size`` places and flattened.

    Raises:
      ValueError: an unknown pooling.
    """
    if pooling == "roi_align":
        pooled = roi_align(feature_map, boxes, (size, size), scale=1 / stride)
    elif pooling == "roi_max_pool":
        pooled = roi_max_pool(feature_map, boxes, (size, size), scale=1 / stride)
    else:
        raise ValueError(f"pooling={pooling!r}; known: roi_max_pool, roi_align")
    return pooled.reshape(*pooled.shape[:-3], -1)
