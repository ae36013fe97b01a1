"""The feed-forward layer of a Transformer block."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.layers.dense import Dense
from jaxseq.typing import Array, DType, Float


class FeedForward(nn.Module):
    """``φ(x W_1 + b_1) W_2 + b_2`` at every position; φ is a GELU by default (Vaswani et al. 2017)."""

    features: int
    hidden: int
    activation: Callable[[Array], Array] = nn.gelu
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
        """Applies the layer to every position."""
        hidden = Dense(self.hidden, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        out = Dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype)
        return out(self.activation(hidden))
