"""A linear layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.ops.rows import add_to_rows, multiply_rows
from jaxseq.typing import Array, DType, Float


class Dense(nn.Module):
    """``x W + b``, computed in ``dtype``.

    The parameters are those of Flax's ``nn.Dense``: ``kernel`` and ``bias``. The gradient of the bias is faster.
    """

    features: int
    use_bias: bool = True
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
        """Applies the layer to the last axis."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        y = multiply_rows(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        return add_to_rows(y, self.param("bias", self.bias_init, (self.features,), self.param_dtype).astype(self.dtype))
