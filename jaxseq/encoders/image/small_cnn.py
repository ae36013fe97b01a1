"""A small convolutional backbone for small images, trained from scratch."""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.encoders.image.convolution import Convolution, GroupNorm, with_coordinates
from jaxseq.typing import Array, DType, Float


class SmallCNN(nn.Module):
    """Convolution, group norm and ReLU for each layer, for images of 32 to 96 px.

    A layer that keeps the shape of its input is a residual, ``x + relu(norm(conv(x)))``, if ``residual``. Two
    coordinate channels are added to the image if ``coordinates``, so that features may depend on the place.

    Args:
      channels: the width of each layer.
      strides: the stride of each layer.
      kernels: the size of each layer's kernel.
      residual: add the input of a layer to its output where the shapes agree.
      coordinates: add the coordinates of each pixel to the input.
      groups: the groups of each norm.
      mean: subtracted from the pixels 0..255 of each channel.
      std: divides the pixels of each channel.

    Raises:
      ValueError: the fields of the layers have different lengths, or ``groups`` does not divide the channels.
    """

    channels: tuple[int, ...] = (32, 64, 96, 96)
    strides: tuple[int, ...] = (2, 1, 2, 1)
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    residual: bool = True
    coordinates: bool = True
    groups: int = 8
    mean: tuple[float, ...] = (120.0, 120.0, 120.0)
    std: tuple[float, ...] = (60.0, 60.0, 60.0)
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        """Checks the lengths."""
        super().__post_init__()
        if not len(self.channels) == len(self.strides) == len(self.kernels) > 0:
            raise ValueError(
                f"channels={self.channels}, strides={self.strides}, kernels={self.kernels}: one of each for every layer"
            )

    @property
    def features(self) -> int:
        """The width of the map."""
        return self.channels[-1]

    @property
    def stride(self) -> int:
        """Pixels for each place of the map."""
        return math.prod(self.strides)

    @nn.compact
    def __call__(self, images: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """The feature map of normalized images."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = images.astype(self.dtype)
        if self.coordinates:
            x = with_coordinates(x)
        for i, (features, stride, size) in enumerate(zip(self.channels, self.strides, self.kernels, strict=True)):
            y = Convolution(features, size, stride, name=f"conv{i}", **types)(x)
            y = nn.relu(GroupNorm(self.groups, name=f"norm{i}", **types)(y))
            x = x + y if self.residual and x.shape == y.shape else y
        return x
