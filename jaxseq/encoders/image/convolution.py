"""Layers of image backbones: convolution, norms that keep the images of a batch apart, coordinate channels."""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.convolution import convolve_2d, depthwise_2d
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Float

HE = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
"""He et al. 2015: keeps the variance through a ReLU."""


class Convolution(nn.Module):
    """``ops.convolve_2d`` with the parameter ``kernel`` ``[size, size, C, features]``, without a bias."""

    features: int
    size: int
    stride: int = 1
    padding: str | int = "same"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """Convolves each image."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", HE, shape, self.param_dtype).astype(self.dtype)
        return convolve_2d(x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding)


class Depthwise(nn.Module):
    """``ops.depthwise_2d`` with the parameter ``kernel`` ``[size, size, C]``, without a bias."""

    size: int
    stride: int = 1
    padding: str | int = "same"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X C"]:
        """Convolves each channel of each image."""
        init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1]), self.param_dtype)
        return depthwise_2d(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=self.padding)


Norm = Literal["group", "frozen_batch"]


def make_norm(norm: Norm, **options: Any) -> nn.Module:
    """The norm of that name: ``GroupNorm`` or ``FrozenBatchNorm``.

    Raises:
      ValueError: an unknown name.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm={norm!r}; known: {', '.join(get_args(Norm))}")
    return GroupNorm(**options) if norm == "group" else FrozenBatchNorm(**options)


class FrozenBatchNorm(nn.Module):
    """``scale ⊙ x + bias`` for each channel: batch normalization with stored statistics (Ioffe & Szegedy 2015).

    ``weights.frozen_batch_norm`` folds running statistics into ``scale`` and ``bias``; there is no other use of
    statistics, so a batch equals its rows. Without trained statistics nothing is normalized: use ``GroupNorm`` to train
    from scratch.
    """

    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B Y X C"]) -> Float[Array, "*B Y X C"]:
        """Scales and shifts each channel."""
        channels, wide = x.shape[-1], at_least_float32(self.dtype)
        shape = (1,) * (x.ndim - 1) + (channels,)
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype).astype(wide).reshape(shape)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype).astype(wide).reshape(shape)
        return (x.astype(wide) * scale + bias).astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalizes each image over the pixels and the channels of a group (Wu & He 2018); scale and bias per channel.

    Statistics are computed in at least float32, of each image alone: a batch equals its rows.

    Raises:
      ValueError: ``groups`` does not divide the channels.
    """

    groups: int = 8
    epsilon: float = 1e-5
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B Y X C"]) -> Float[Array, "*B Y X C"]:
        """Normalizes each image."""
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"groups={self.groups} does not divide {channels} channels")
        wide = at_least_float32(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype).astype(wide)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype).astype(wide)
        grouped = x.astype(wide).reshape(*x.shape[:-1], self.groups, channels // self.groups)
        axes = (-4, -3, -1)
        centered = grouped - grouped.mean(axes, keepdims=True)
        factor = lax.rsqrt(jnp.square(centered).mean(axes, keepdims=True) + self.epsilon)
        unit = (centered * factor).reshape(x.shape)
        ones = (1,) * (x.ndim - 1)
        return (unit * scale.reshape(*ones, channels) + bias.reshape(*ones, channels)).astype(self.dtype)


def coordinates(height: int, width: int, dtype: DType) -> Float[Array, "Y X 2"]:
    """The place of each pixel, (y, x) from -1 to 1; 0 along an axis of one pixel."""
    axes = [jnp.linspace(-1, 1, n) if n > 1 else jnp.zeros(1) for n in (height, width)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).astype(dtype)


def with_coordinates(x: Float[Array, "*B Y X C"]) -> Float[Array, "*B Y X D"]:
    """The image with its coordinates as two further channels (Liu et al. 2018: CoordConv)."""
    height, width = x.shape[-3:-1]
    places = coordinates(height, width, x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(places, (*x.shape[:-1], 2))], axis=-1)
