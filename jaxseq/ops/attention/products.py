"""Products of attention, summed in at least float32."""

import jax.numpy as jnp
from jax import lax

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float


def scale_query(query: Float[Array, "*B H"], scale: float) -> Float[Array, "*B H"]:
    """The query times the scale of the scores, in its own dtype."""
    return (query.astype(at_least_float32(query.dtype)) * scale).astype(query.dtype)


def dot(left: Float[Array, "*B T H"], right: Float[Array, "*B H S"]) -> Float[Array, "*B T S"]:
    """``left right``."""
    return jnp.matmul(left, right, preferred_element_type=at_least_float32(left.dtype))


def dot_rows(left: Float[Array, "P T H"], right: Float[Array, "P S H"]) -> Float[Array, "P T S"]:
    """``left rightᵀ`` without transposing either operand."""
    dims = (((2,), (2,)), ((0,), (0,)))
    return lax.dot_general(left, right, dims, preferred_element_type=at_least_float32(left.dtype))


def row_deltas(
    out: Float[Array, "*B Hv"], cotangent: Float[Array, "*B Hv"], d_logsumexp: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """``out · cotangent - d_logsumexp`` for each query."""
    wide = d_logsumexp.dtype
    # A sum over the last axis of a product takes XLA's CPU backend 30 times as long as this.
    return jnp.einsum("...h,...h->...", out.astype(wide), cotangent.astype(wide)) - d_logsumexp
