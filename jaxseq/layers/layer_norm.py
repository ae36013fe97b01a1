"""Layer normalization in at least float32."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Float


class LayerNorm(nn.Module):
    """Flax's LayerNorm over the features (Ba et al. 2016), computed in at least float32; the output is ``dtype``.

    ``epsilon`` is added to the variance.
    """

    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    def setup(self) -> None:
        """Keeps ``scale`` and ``bias`` in this module's own scope."""
        wide = at_least_float32(self.dtype)
        types = {"dtype": wide, "param_dtype": self.param_dtype}
        self.layer = nn.LayerNorm(self.epsilon, **types, force_float32_reductions=False)
        nn.share_scope(self, self.layer)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalizes each vector of features."""
        return self.layer(x.astype(at_least_float32(self.dtype))).astype(self.dtype)
