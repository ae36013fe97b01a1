"""The chunkwise implementation of the gated delta rule.

The reference reads and writes the whole state at every position, this form once a chunk. There the recurrence
``S_t = e^{g_t} S_{t-1} + k_t u_tᵀ`` with ``u_t = β_t (v_t - e^{g_t} S_{t-1}ᵀ k_t)`` is a triangular system for the
``u`` of the chunk (its UT form). With S the state before the chunk, G_t the sum of g up to t, and
``D_tj = exp(g_{j+1} + ... + g_t)`` for j <= t:

    (I + β ⊙ (D - I) ⊙ K Kᵀ) U = β ⊙ (V - e^G ⊙ K S),    Y = e^G ⊙ Q S + (D ⊙ Q Kᵀ) U,    S' = e^{G_C} S + (D_C ⊙ K)ᵀ U
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops.linear.chunks import chunk_size, scan_chunks
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
    log_decay: Float[Array, "*B T N"],
    *,
    segment_ids: SegmentIds | None,
    chunk: int | None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """The last state and all outputs; all arrays in one dtype, with zeros at padded positions, at least one step."""
    size = chunk_size(chunk, CHUNK, query.shape[-3])
    return scan_chunks(_chunk, state, [query, key, value, beta, log_decay], segment_ids, size)


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
