"""Layer normalization in at least float32."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.ops.layer_norm import layer_norm
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Float


class LayerNorm(nn.Module):
    """``ops.layer_norm`` over the features (Ba et al. 2016), computed in at least float32; the output is ``dtype``.

    ``epsilon`` is added to the variance. The parameters are ``scale`` and ``bias``, as those of ``nn.LayerNorm``.
    """

    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalizes each vector of features."""
        wide, shape = at_least_float32(self.dtype), x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        return layer_norm(x.astype(wide), scale.astype(wide), bias.astype(wide), epsilon=self.epsilon).astype(
            self.dtype
        )
