"""The decode implementation of attention: for a few queries, reads keys and values once, without copies of them."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.reference import drop, softmax_of_products
from jaxseq.ops.attention.tiled import align_ranks
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array


def attention_decode(query: Array, key: Array, value: Array, parts: Parts, scale: Any, soft_cap: float | None) -> Array:
    """The equation as two products with keys and values in their own layout, ``[S, M · H]``.

    A query fills the columns of its key-value head and has zeros in the others: more products, but keys and values are
    read once and not copied, which dominates the time of a decoding step.
    """
    (T, N, H), (S, M, Hv) = query.shape[-3:], value.shape[-3:]
    batch, wide = query.shape[:-3], at_least_float32(query.dtype)
    own = jnp.repeat(jnp.eye(M, dtype=query.dtype), N // M, axis=0)[:, None, :, None]  # [N, 1, M, 1]
    rows = align_ranks(query.swapaxes(-3, -2)[..., None, :], own)
    rows = (rows[0] * rows[1]).reshape(*batch, N * T, M * H)
    keys, values = key.reshape(*batch, S, M * H), value.reshape(*batch, S, M * Hv)
    # The barrier keeps XLA from transposing the product, which is far slower with a large cache.
    products = lax.optimization_barrier(jnp.matmul(keys, rows.mT, preferred_element_type=wide))
    products = products.mT.reshape(*batch, N, T, S)
    weights = drop(softmax_of_products(products, parts.mask, parts.bias, scale, soft_cap), parts.dropout)
    weights = weights.astype(value.dtype).reshape(*batch, N * T, S)
    mixed = jnp.matmul(weights, values, preferred_element_type=wide).reshape(*batch, N, T, M, Hv)
    # Select each query's own head: a product with zeros and ones would be fused into the matrix product.
    picked = (jnp.arange(N) // (N // M)).reshape((1,) * len(batch) + (N, 1, 1, 1))
    mixed = jnp.take_along_axis(mixed, picked, axis=-2)[..., 0, :]
    return mixed.swapaxes(-3, -2).astype(query.dtype)
