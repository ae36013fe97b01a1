"""The chunkwise implementation of the gated delta rule.

The reference reads and writes the whole state at every position, this form once a chunk. There the recurrence
``S_t = e^{g_t} S_{t-1} + k_t u_tᵀ`` with ``u_t = β_t (v_t - e^{g_t} S_{t-1}ᵀ k_t)`` is a triangular system for the
``u`` of the chunk (its UT form). With S the state before the chunk, G_t the sum of g up to t, and
``D_tj = exp(g_{j+1} + ... + g_t)`` for j <= t:

    (I + β ⊙ (D - I) ⊙ K Kᵀ) U = β ⊙ (V - e^G ⊙ K S),    Y = e^G ⊙ Q S + (D ⊙ Q Kᵀ) U,    S' = e^{G_C} S + (D_C ⊙ K)ᵀ U

With a decay for each key channel D has one more dimension, ``D ⊙ Q Kᵀ`` is ``Σ_c Q_tc D_tjc K_jc``, and K stands for
``e^G ⊙ K`` where it reads S (Kimi Team 2025, arXiv:2510.26692).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.linear.chunks import chunk_size, scan_chunks
from jaxseq.ops.linear.decays import Sums, decay_to_middle, half_pairs, sums_in_chunk, visible_keys
from jaxseq.typing import Array, Float, Int, SegmentIds

CHUNK = 32
"""Positions of a chunk."""

BLOCK = 8
"""Rows up to which a triangular matrix is inverted element by element."""


def chunkwise_delta_rule(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    beta: Float[Array, "*B T N"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None,
    chunk: int | None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """The last state and all outputs; all arrays in one dtype, with zeros at padded positions, at least one step."""
    size = chunk_size(chunk, CHUNK, query.shape[-3])
    body = _chunk if log_decay.ndim < query.ndim else _chunk_by_channel
    return scan_chunks(body, state, [query, key, value, beta, log_decay], segment_ids, size)


def _chunk(state: Float[Array, "*B N H Hv"], at: tuple[Array, ...]) -> tuple[Array, Array]:
    """The state after a chunk and the chunk's outputs.

    The state before it reaches only positions of the same document. Its infinite entries are added separately where
    they belong: in matrix products they would reach all positions.
    """
    q, k, v, beta, log_decay, document, before = at
    decay = _decay(log_decay, document)
    continues = document == before
    decay_in = jnp.where(continues, jnp.exp(jnp.cumsum(log_decay, -1)), 0)[..., None]
    not_finite = (0 * state).sum(-2)[..., None, :]
    state = jnp.where(jnp.isfinite(state), state, 0)
    lower = jnp.tril(beta[..., None] * decay * (k @ _transpose(k)), -1)
    written = _inverse(lower) @ (beta[..., None] * (v - decay_in * (k @ state)))
    out = (decay * (q @ _transpose(k))) @ written + decay_in * (q @ state)
    state = decay_in[..., -1:, :] * state + _transpose(decay[..., -1, :, None] * k) @ written
    return state + jnp.where(continues[..., -1:, None], not_finite, 0), out + jnp.where(
        continues[..., None], not_finite, 0
    )


def _chunk_by_channel(state: Float[Array, "*B N H Hv"], at: tuple[Array, ...]) -> tuple[Array, Array]:
    """``_chunk`` with a decay for each key channel.

    The chunk depends on the sums g of log decays through ``exp(g_t)`` times what reads at t, ``exp(-g_j)`` times the
    key at j and ``exp(g_C)`` times the state after it. So the exponentials are constants, and three factors of 1 carry
    every derivative by the decays.
    """
    q, k, v, beta, log_decay, document, before = at
    size, last = k.shape[-2], document[..., -1:]
    continues, leaves, passes = ((a == b)[..., None] for a, b in ((document, before), (document, last), (last, before)))
    differentiable = sums_in_chunk(log_decay, document)
    sums = lax.stop_gradient(differentiable)
    change = differentiable.fine - sums.fine
    end = Sums(*(part[..., -1:, :] for part in sums))
    not_finite = (0 * state).sum(-2)[..., None, :]
    state = jnp.where(jnp.isfinite(state), state, 0)
    beta = beta[..., None]
    readers, written_keys = [r * jnp.exp(change) for r in (beta * k, q)], k * jnp.exp(-change)
    of_keys, of_queries = jnp.split(_scores(readers, written_keys, sums, document), [size], axis=-2)
    decay_in = jnp.where(continues, sums.exp(), 0)
    read = jnp.concatenate([r * decay_in for r in readers], -2) @ state
    written = _inverse(of_keys) @ (beta * v - read[..., :size, :])
    out = of_queries @ written + (q * k).sum(-1, keepdims=True) * written + read[..., size:, :]
    kept = jnp.where(leaves, written_keys * jnp.exp(jnp.minimum(end.minus(sums), 0)), 0)
    state = jnp.where(passes, state, 0) * _transpose(end.exp()) + _transpose(kept) @ written
    state = state * _transpose(jnp.exp(change[..., -1:, :]))
    return state + jnp.where(passes, not_finite, 0), out + jnp.where(continues, not_finite, 0)


def _scores(
    readers: list[Float[Array, "*B N C H"]], keys: Float[Array, "*B N C H"], sums: Sums, document: Int[Array, "*#B 1 C"]
) -> Float[Array, "*B N RC C"]:
    """``Σ_c r_tc exp(g_tc - g_jc) k_jc`` for j < t of the same document, of all readers one below another.

    In every interval of 2, 4, 8, ... positions the later half reads the earlier half, by way of its last position m:
    ``exp(g_t - g_m)`` and ``exp(g_m - g_j)`` are both at most 1.
    """
    size, count = keys.shape[-2], len(readers)
    visible = jnp.concatenate([visible_keys(document)] * count, -2)
    scores = jnp.zeros((*keys.shape[:-2], count * size, size), keys.dtype)
    half = 1
    while half < size:
        factor = decay_to_middle(sums, half).reshape(keys.shape)
        pairs = np.tile(half_pairs(size, half), (count, 1))
        products = jnp.concatenate([r * factor for r in readers], -2) @ _transpose(keys * factor)
        scores = jnp.where(visible & jnp.broadcast_to(pairs, visible.shape), products, scores)
        half *= 2
    return scores


def _transpose(matrix: Float[Array, "*B R C"]) -> Float[Array, "*B C R"]:
    return jnp.swapaxes(matrix, -1, -2)


def _decay(log_decay: Float[Array, "*B N C"], document: Int[Array, "*#B 1 C"]) -> Float[Array, "*B N C C"]:
    """``D_tj = exp(g_{j+1} + ... + g_t)``, 0 for j > t and from one document to another.

    Each sum is made of its own terms: a difference of sums from the beginning would lose what follows a strong decay.
    """
    size = log_decay.shape[-1]
    t, j, i = np.ogrid[:size, :size, :size]
    between = ((j < i) & (i <= t)).reshape(size * size, size).T.astype(log_decay.dtype)
    sums = jnp.matmul(log_decay.reshape(-1, size), between, precision="highest")
    causal = jnp.broadcast_to((j <= t)[..., 0], (*document.shape, size))
    visible = (document[..., :, None] == document[..., None, :]) & causal
    return jnp.where(visible, jnp.exp(sums.reshape(*log_decay.shape, size)), 0)


@jax.custom_jvp
def _inverse(lower: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """``(I + L)^-1`` for strictly lower triangular L, as accurate as substitution (powers of L would overflow).

    The inverse of ``[[A, 0], [B, C]]`` is ``[[A^-1, 0], [-C^-1 B A^-1, C^-1]]``: from halves, both at once.
    """
    size = lower.shape[-1]
    if size <= BLOCK:
        return jnp.moveaxis(_small_inverse(jnp.moveaxis(lower, (-2, -1), (0, 1))), (0, 1), (-2, -1))
    half = size // 2
    first, second = _inverse(jnp.stack([lower[..., :half, :half], lower[..., half:, half:]]))
    below = -(second @ (lower[..., half:, :half] @ first))
    return _assemble(first, below, second, -2)


def _small_inverse(lower: Float[Array, "C C *B"]) -> Float[Array, "C C *B"]:
    """The same element by element, over all batch dims at once."""
    if lower.shape[0] == 1:
        return jnp.ones_like(lower)
    half = lower.shape[0] // 2
    first, second = _small_inverse(lower[:half, :half]), _small_inverse(lower[half:, half:])
    below = (lower[half:, :half, None] * first[None]).sum(1)
    return _assemble(first, -(second[:, :, None] * below[None]).sum(1), second, 0)


def _assemble(first: Array, below: Array, second: Array, axis: int) -> Array:
    """``[[first, 0], [below, second]]`` of the matrices whose rows are ``axis``."""
    upper = jnp.concatenate([first, jnp.zeros_like(first)], axis + 1)
    return jnp.concatenate([upper, jnp.concatenate([below, second], axis + 1)], axis)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _inverse(*primals)
    return inverse, -(inverse @ (tangents[0] @ inverse))
