"""Patches of an image as features."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.encoders.image.convolution import Convolution
from jaxseq.typing import Array, DType, Float


class Patches(nn.Module):
    """A linear map of each patch of ``size`` x ``size`` pixels, and a bias (Dosovitskiy et al. 2021: ViT).

    A vision transformer is ``ImageEncoder(Patches(16, F), None, make_encoder("transformer", F, layers,
    feed_forward=4 * F, positions="none"), positions="sinusoidal")``.

    Raises:
      ValueError: ``size`` does not divide the height and the width.
    """

    size: int = 8
    features: int = 128
    mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    std: tuple[float, ...] = (127.5, 127.5, 127.5)
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @property
    def stride(self) -> int:
        """Pixels for each patch."""
        return self.size

    @nn.compact
    def __call__(self, images: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """The features of each patch."""
        height, width = images.shape[-3:-1]
        if height % self.size or width % self.size:
            raise ValueError(f"patches of {self.size} px do not divide an image of {height} x {width} px: resize it")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Convolution(self.features, self.size, self.size, "valid", name="conv", **types)(images)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        return x + bias.reshape((1,) * (x.ndim - 1) + (self.features,))
