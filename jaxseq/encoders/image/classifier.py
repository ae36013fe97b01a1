"""A classifier of images."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.encoders.image.backbone import Backbone
from jaxseq.encoders.image.image_encoder import pooled
from jaxseq.layers.dense import Dense
from jaxseq.ops.images import normalize
from jaxseq.typing import Array, DType, Float, Shaped


class ImageClassifier(nn.Module):
    """``dense(pooled(backbone((pixels - mean) / std)))``: the logits of classes, as backbones are pretrained."""

    backbone: Backbone
    num_classes: int = 1000
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Shaped[Array, "*B Y X C"]) -> Float[Array, "*B V"]:
        """The logits of images of pixels 0..255."""
        normalized = normalize(images, self.backbone.mean, self.backbone.std, self.dtype)
        head = Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype, name="head")
        return head(pooled(self.backbone(normalized)))
