"""ResNets in torchvision's arrangement."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxseq.encoders.image.convolution import Convolution, Norm, make_norm
from jaxseq.typing import Array, DType, Float

LAYERS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of each stage by depth; 50 layers and more have bottlenecks."""


class ResNet(nn.Module):
    """ResNet-18, -34 or -50 (He et al. 2016) as torchvision arranges it, up to the last stage.

    A 7x7 convolution of stride 2 and a 3x3 max pool of stride 2, then four stages of basic blocks (3x3, 3x3) or
    bottlenecks (1x1, 3x3 with the stride, 1x1 four times as wide). A 1x1 projection is the shortcut where the shape
    changes. Padding is symmetric, torch's rule.

    ``norm="frozen_batch"`` is an affine map of each channel into which ``weights.frozen_batch_norm`` folds the running
    statistics of a trained network (``entries``); the statistics of a batch are never used. ``"group"`` (8 groups) is
    for training from scratch.

    Raises:
      ValueError: an unknown depth or norm.
    """

    depth: int = 50
    norm: Norm = "frozen_batch"
    width: int = 64
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        """Checks the depth."""
        super().__post_init__()
        if self.depth not in LAYERS:
            raise ValueError(f"depth={self.depth}; known: {', '.join(map(str, LAYERS))}")

    @property
    def features(self) -> int:
        """The width of the map: 512, of 50 layers 2048."""
        return self.width * 8 * self.expansion

    @property
    def expansion(self) -> int:
        """The width of a block's output over that of its 3x3 convolution."""
        return 4 if self.depth >= 50 else 1

    @property
    def stride(self) -> int:
        """Pixels for each place of the map."""
        return 32

    @nn.compact
    def __call__(self, images: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """The feature map of normalized images."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Convolution(self.width, 7, 2, padding=3, name="stem_conv", **types)(images)
        x = nn.relu(make_norm(self.norm, name="stem_norm", **types)(x))
        x = max_pool(x)
        for stage, count in enumerate(LAYERS[self.depth]):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                fields = {"norm": self.norm, "name": f"stage{stage}_block{i}", **types}
                x = ResNetBlock(self.width * 2**stage, self.expansion, stride, **fields)(x)
        return x


class ResNetBlock(nn.Module):
    """``relu(shortcut(x) + convolutions(x))``: two 3x3 (``expansion=1``), or a bottleneck 1x1, 3x3, 1x1."""

    features: int
    expansion: int = 1
    stride: int = 1
    norm: Norm = "frozen_batch"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """Runs the block."""
        wide = self.features * self.expansion
        if self.expansion == 1:
            layers = [(self.features, 3, self.stride), (wide, 3, 1)]
        else:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (wide, 1, 1)]
        y = x
        for i, (features, size, stride) in enumerate(layers):
            y = self._convolve(f"{i + 1}", y, features, size, stride)
            y = nn.relu(y) if i + 1 < len(layers) else y
        changes = self.stride != 1 or x.shape[-1] != wide
        shortcut = self._convolve("_shortcut", x, wide, 1, self.stride) if changes else x
        return nn.relu(shortcut + y)

    def _convolve(self, name: str, x: Array, features: int, size: int, stride: int) -> Array:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Convolution(features, size, stride, padding=size // 2, name=f"conv{name}", **types)(x)
        return make_norm(self.norm, name=f"norm{name}", **types)(x)


def max_pool(x: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X C"]:
    """The maximum of 3x3 pixels at a stride of 2, one pixel beyond each edge left out of it."""
    ones = (1,) * (x.ndim - 3)
    edges = [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (*ones, 3, 3, 1), (*ones, 2, 2, 1), edges)
