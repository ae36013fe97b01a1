"""How a context joins what it goes with."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.typing import Array, DType, Float

FUSIONS = ("add", "multiply", "concat")


class Fusion(nn.Module):
    """``x + W c + b``, ``x ⊙ (W c + b)`` or ``[x; c]``: ``"add"``, ``"multiply"``, ``"concat"``.

    W brings the context to the width of x; b begins as 0 for a sum and as 1 for a product, so that both begin near x.

    Raises:
      ValueError: an unknown kind.
    """

    kind: str = "concat"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B T D"], context: Float[Array, "*B #T E"]) -> Float[Array, "*B T F"]:
        """Joins them, position by position; a single context goes with every position."""
        if self.kind not in FUSIONS:
            raise ValueError(f"fusion={self.kind!r}; known: {', '.join(FUSIONS)}")
        x, context = x.astype(self.dtype), context.astype(self.dtype)
        if self.kind == "concat":
            context = jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1]))
            return jnp.concatenate([x, context], axis=-1)
        start = nn.initializers.zeros if self.kind == "add" else nn.initializers.ones
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        context = nn.Dense(x.shape[-1], bias_init=start, name="context", **types)(context)
        return x + context if self.kind == "add" else x * context
