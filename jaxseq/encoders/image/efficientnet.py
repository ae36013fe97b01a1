"""EfficientNet-Lite0."""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.encoders.image.convolution import Convolution, Depthwise, Norm, make_norm
from jaxseq.typing import Array, DType, Float


class Stage(NamedTuple):
    """Inverted residual blocks of one width; the first of them has the stride."""

    repeats: int
    size: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def blocks() -> Iterator[Stage]:
    """Every block of Lite0 in order, as a stage of one repeat."""
    for stage in STAGES:
        for i in range(stage.repeats):
            yield stage._replace(repeats=1, stride=stage.stride if i == 0 else 1)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019; Lite: ReLU6, no squeeze-and-excite) up to its last convolution, 1280 wide.

    A 3x3 stem of stride 2, seven stages of inverted residuals (1x1 expansion, depthwise convolution, 1x1 projection
    without an activation; an input of the same shape is added) and a 1x1 convolution. Padding is TensorFlow's
    ``"same"``. Norms are ``"frozen_batch"`` (epsilon 1e-3 in the statistics folded by ``entries``) or ``"group"``.
    Trained at 224 x 224 px; any size works.
    """

    norm: Norm = "frozen_batch"
    mean: tuple[float, ...] = (127.0, 127.0, 127.0)
    std: tuple[float, ...] = (128.0, 128.0, 128.0)
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @property
    def features(self) -> int:
        """The width of the map."""
        return 1280

    @property
    def stride(self) -> int:
        """Pixels for each place of the map."""
        return 32

    @nn.compact
    def __call__(self, images: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """The feature map of normalized images."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Convolution(32, 3, 2, name="stem_conv", **types)(images)
        x = nn.relu6(make_norm(self.norm, name="stem_norm", **types)(x))
        for i, block in enumerate(blocks()):
            x = InvertedResidual(block, self.norm, name=f"block{i}", **types)(x)
        x = Convolution(self.features, 1, name="head_conv", **types)(x)
        return nn.relu6(make_norm(self.norm, name="head_norm", **types)(x))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection (Sandler et al. 2018)."""

    block: Stage
    norm: Norm
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """Runs the block."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y, (_, size, stride, expansion, features) = x, self.block
        if expansion != 1:
            y = Convolution(expansion * x.shape[-1], 1, name="expand_conv", **types)(y)
            y = nn.relu6(make_norm(self.norm, name="expand_norm", **types)(y))
        y = Depthwise(size, stride, name="depthwise_conv", **types)(y)
        y = nn.relu6(make_norm(self.norm, name="depthwise_norm", **types)(y))
        y = Convolution(features, 1, name="project_conv", **types)(y)
        y = make_norm(self.norm, name="project_norm", **types)(y)
        return x + y if x.shape == y.shape else y
