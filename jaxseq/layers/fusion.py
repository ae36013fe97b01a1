"""Joins a context vector to the features of a sequence."""

from typing import Literal, TypeAlias, get_args

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.layers.dense import Dense
from jaxseq.typing import Array, DType, Float

FusionKind: TypeAlias = Literal["add", "multiply", "concat"]
FUSIONS: tuple[str, ...] = get_args(FusionKind)


class Fusion(nn.Module):
    """``x + W c + b`` (``"add"``), ``x ⊙ (W c + b)`` (``"multiply"``) or ``[x; c]`` (``"concat"``).

    W projects the context c to the width of x. b is initialized to 0 for a sum and to 1 for a product, so that the
    output is at first close to x.

    Raises:
      ValueError: an unknown kind, or a context of another batch or length than x.
    """

    kind: str = "concat"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B T D"], context: Float[Array, "*B #T E"]) -> Float[Array, "*B T F"]:
        """Joins the context to every position; a single context is broadcast over time."""
        if self.kind not in FUSIONS:
            raise ValueError(f"fusion={self.kind!r}; known: {', '.join(FUSIONS)}")
        if x.shape[:-2] != context.shape[:-2] or context.shape[-2] not in (1, x.shape[-2]):
            raise ValueError(f"a context of shape {context.shape} ([*B, T or 1, E]) does not fit x of shape {x.shape}")
        x, context = x.astype(self.dtype), context.astype(self.dtype)
        if self.kind == "concat":
            context = jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1]))
            return jnp.concatenate([x, context], axis=-1)
        bias_init = nn.initializers.zeros if self.kind == "add" else nn.initializers.ones
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        context = Dense(x.shape[-1], bias_init=bias_init, name="context", **types)(context)
        return x + context if self.kind == "add" else x * context
