"""The chunkwise implementation of linear attention: matrix products within a chunk, a scan over states between chunks.

The reference touches the whole state at every position, this form once a chunk (Hua et al. 2022, arXiv:2202.10447; Sun
et al. 2023, arXiv:2307.08621; Yang et al. 2023, arXiv:2312.06635; Dao & Gu 2024, arXiv:2405.21060). With ``g_i`` the
sum of log decays from the first position of a document in the chunk up to i, position i reads the key at j by
``exp(g_i - g_j)`` where j is not later and of the same document.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.linear.chunks import chunk_size, scan_chunks
from jaxseq.ops.linear.decays import (
    MAX_ROUNDING_ERROR,
    Sums,
    decay_to_middle,
    half_pairs,
    sums_in_chunk,
    visible_keys,
)
from jaxseq.typing import Array, Float, SegmentIds

CHUNK_BY_HEAD, CHUNK_BY_CHANNEL = 64, 32
"""Positions of a chunk for a decay a head and for one a key channel."""

BLOCK = 16
"""Positions whose scores the decay by channel computes in one product, for pairs that are close together."""


def chunkwise_linear_attention(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None,
    chunk: int | None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """The last state and all outputs; all arrays in one dtype, with zeros at padded positions, at least one step."""
    by_head = log_decay.ndim < query.ndim
    if by_head:
        log_decay = log_decay[..., None]
    size = chunk_size(chunk, CHUNK_BY_HEAD if by_head else CHUNK_BY_CHANNEL, query.shape[-3])
    return scan_chunks(_chunk, state, [query, key, value, log_decay], segment_ids, size)


def _chunk(
    state: Float[Array, "*B N H Hv"], at: tuple[Array, Array, Array, Array, Array, Array]
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B N C Hv"]]:
    """One chunk: the state after it, and its outputs."""
    q, k, v, log_decay, document, before = at
    last = document[..., -1:]
    continues, leaves, passes = ((a == b)[..., None] for a, b in ((document, before), (document, last), (last, before)))
    # A chunk depends on its sums through exp(g_i) q_i, exp(-g_j) k_j and exp(g) times the state. So the exponentials
    # below are constants; three factors of 1 carry every derivative by the decays: q · dq - k · dk.
    differentiable = sums_in_chunk(log_decay, document)
    sums = lax.stop_gradient(differentiable)
    change = differentiable.fine - sums.fine
    # A position reads its own key without a decay: its term takes no factor, because it would cancel in the difference.
    own = (q * k).sum(-1, keepdims=True) * v
    q, k = q * jnp.exp(change), k * jnp.exp(-change)
    end = Sums(*(part[..., -1:, :] for part in sums))
    inside = _by_head if log_decay.shape[-1] == 1 else _by_channel
    seen = jnp.where(continues, q * sums.exp(), 0)
    out = own + inside(q, k, v, sums, document) + jnp.where(continues, seen @ state, 0)
    kept = jnp.where(leaves, k * jnp.exp(jnp.minimum(end.minus(sums), MAX_ROUNDING_ERROR)), 0)
    faded = jnp.where(passes, state, 0) * jnp.swapaxes(end.exp(), -1, -2)
    state = faded + jnp.swapaxes(kept, -1, -2) @ v
    return state * jnp.exp(jnp.swapaxes(change[..., -1:, :], -1, -2)), out


def _by_head(q: Array, k: Array, v: Array, sums: Sums, document: Array) -> Array:
    """Reads earlier keys by one decay a head: one matrix of decays a chunk."""
    to, since = (Sums(*(jnp.expand_dims(part[..., 0], axis) for part in sums)) for axis in (-1, -2))
    visible = visible_keys(document)
    earlier = visible & jnp.broadcast_to(~np.eye(visible.shape[-1], dtype=bool), visible.shape)
    decay = jnp.where(earlier, jnp.exp(jnp.minimum(to.minus(since), MAX_ROUNDING_ERROR)), 0)
    return (q @ jnp.swapaxes(k, -1, -2) * decay) @ v


def _by_channel(q: Array, k: Array, v: Array, sums: Sums, document: Array) -> Array:
    """Reads earlier keys by one decay a key channel: in every interval of 2, 4, 8, ... positions, the later half reads
    the earlier half.

    The factor is ``exp(g_i - g_m) exp(g_m - g_j)``, m the last position of the earlier half: both are at most 1. Each
    interval length computes the products of all pairs in a block and selects its own.
    """
    size = q.shape[-2]
    out = jnp.zeros((), q.dtype)
    half = 1
    for block in (min(BLOCK, size), size):
        scores = jnp.zeros((), q.dtype)
        q_, k_, v_ = (z.reshape(*z.shape[:-2], z.shape[-2] // block, block, z.shape[-1]) for z in (q, k, v))
        visible = visible_keys(document.reshape(*document.shape[:-1], document.shape[-1] // block, block))
        while half < block:
            factor = decay_to_middle(sums, half).reshape(q_.shape)
            taken = visible & jnp.broadcast_to(half_pairs(block, half), visible.shape)
            scores = scores + jnp.where(taken, (q_ * factor) @ jnp.swapaxes(k_ * factor, -1, -2), 0)
            half *= 2
        if scores.ndim:
            out = out + (scores @ v_).reshape(v.shape)
    return out
