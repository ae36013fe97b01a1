"""The gated delta rule: a matrix state that writes what a key's present reading lacks, and decays.

The step form reads and writes the whole state at every position. The chunkwise form does so once a chunk. There the
recurrence ``S_t = e^{g_t} S_{t-1} + k_t u_tᵀ`` with ``u_t = β_t (v_t - e^{g_t} S_{t-1}ᵀ k_t)`` is a triangular system
for the ``u`` of the chunk (its UT form). With S the state before the chunk, G_t the sum of g up to t, and
``D_tj = exp(g_{j+1} + ... + g_t)`` for j <= t:

    (I + β ⊙ (D - I) ⊙ K Kᵀ) U = β ⊙ (V - e^G ⊙ K S),    Y = e^G ⊙ Q S + (D ⊙ Q Kᵀ) U,    S' = e^{G_C} S + (D_C ⊙ K)ᵀ U
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.implementations import running
from jaxseq.ops.linear.chunkwise import scan_chunks
from jaxseq.ops.linear.linear_attention import check_chunk, check_shapes, without_padding
from jaxseq.typing import Array, Float, Int, SegmentIds

IMPLEMENTATIONS = ("chunkwise", "sequential")
CHUNK = 32
BLOCK = 8


def delta_rule(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    beta: Float[Array, "*B T N"],
    log_decay: Float[Array, "*B T N"],
    *,
    segment_ids: SegmentIds | None = None,
    chunk: int | None = None,
    implementation: str = "auto",
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``S_t = exp(g_t) (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ``, ``y_t = S_tᵀ q_t``; returns last S and all y.

    The gated delta rule (Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464); without decay the delta rule, whose
    chunkwise form is due to Yang et al. (2024, arXiv:2406.06484). Nothing is scaled or normalised inside: keys longer
    than ``sqrt(2 / β)`` make the state grow. It is computed in the state's dtype; ``y`` comes back in the value's.

    Args:
      query, key, value: what is asked, where it is kept, what is kept; float64, float32 or less.
      beta: how much of what is kept at the key is replaced: 0 is nothing, 1 all of it.
      log_decay: the logarithm of the decay g: finite and at most 0. Only exponentials of numbers at most 0 are formed,
        so that any decay is safe.
      state: ``S`` before the first step, float32 or float64.
      segment_ids: 0 is padding (the state stands still, outputs are 0), a change of id begins again from zeros.
      chunk: positions solved for at once, a power of two; chosen unless given.
      implementation: ``"chunkwise"``, ``"sequential"`` (a scan over time) or ``"auto"``: a step for one position, else
        by chunks.

    Raises:
      ValueError: shapes do not agree, the state is of less than 32 bits, the chunk is not a power of two, or the
        implementation is unknown.
    """
    if implementation not in (*IMPLEMENTATIONS, "auto"):
        raise ValueError(f"implementation={implementation!r}; known: {', '.join(('auto', *IMPLEMENTATIONS))}")
    check_chunk(chunk)
    check_shapes(state, query, key, value, log_decay)
    if not beta.shape == log_decay.shape == query.shape[:-1]:
        raise ValueError(f"beta {beta.shape} and log_decay {log_decay.shape} must be {query.shape[:-1]} ([*B, T, N])")
    segments.check(segment_ids, query.shape[:-2])
    time = query.shape[-3]
    if time == 0:
        return state, value
    if implementation == "auto":
        implementation = "sequential" if time == 1 else "chunkwise"
    with running("delta_rule", implementation):
        if implementation == "sequential":
            return delta_rule_reference(state, query, key, value, beta, log_decay, segment_ids=segment_ids)
        size = min(chunk or CHUNK, 1 << (time - 1).bit_length())
        arrays = without_padding(segment_ids, state.dtype, query, key, value, beta, log_decay)
        state, out = scan_chunks(_one_chunk, state, arrays, segment_ids, size)
        return state, out.astype(value.dtype)


def delta_rule_reference(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    beta: Float[Array, "*B T N"],
    log_decay: Float[Array, "*B T N"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``delta_rule`` one step after another, with the gradient JAX gives a scan."""
    starts = None if segment_ids is None else segments.starts(segment_ids, segments.no_ids(segment_ids))

    def step(state: Array, at: tuple) -> tuple[Array, Array]:
        (q, k, v, beta, log_decay), start = at
        if start is not None:
            state = jnp.where(start[..., None, None, None], jnp.zeros_like(state), state)
        state = jnp.exp(log_decay)[..., None, None] * state
        lacking = v - (k[..., None] * state).sum(-2)
        state = state + k[..., :, None] * (beta[..., None] * lacking)[..., None, :]
        return state, (q[..., None] * state).sum(-2)

    arrays = without_padding(segment_ids, state.dtype, query, key, value, beta, log_decay)
    time = query.ndim - 3
    state, out = lax.scan(step, state, jax.tree.map(lambda z: jnp.moveaxis(z, time, 0), (arrays, starts)))
    return state, jnp.moveaxis(out, 0, time).astype(value.dtype)


def _one_chunk(state: Float[Array, "*B N H Hv"], at: tuple[Array, ...]) -> tuple[Array, Array]:
    """The state after a chunk and what its positions read.

    The state before it reaches only positions of the document before it, and nothing passes between documents. What
    is infinite in it is kept apart, to be added where it belongs: in products it would reach all positions.
    """
    q, k, v, beta, log_decay, document, before = at
    decay = _decay(log_decay, document)
    continues = document == before
    entering = jnp.where(continues, jnp.exp(jnp.cumsum(log_decay, -1)), 0)[..., None]
    spoilt = (0 * state).sum(-2)[..., None, :]
    state = jnp.where(jnp.isfinite(state), state, 0)
    lower = jnp.tril(beta[..., None] * decay * (k @ _turned(k)), -1)
    written = _inverse(lower) @ (beta[..., None] * (v - entering * (k @ state)))
    out = (decay * (q @ _turned(k))) @ written + entering * (q @ state)
    state = entering[..., -1:, :] * state + _turned(decay[..., -1, :, None] * k) @ written
    return state + jnp.where(continues[..., -1:, None], spoilt, 0), out + jnp.where(continues[..., None], spoilt, 0)


def _turned(matrix: Float[Array, "*B R C"]) -> Float[Array, "*B C R"]:
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
    return _assembled(first, below, second, -2)


def _small_inverse(lower: Float[Array, "C C *B"]) -> Float[Array, "C C *B"]:
    """The same element by element, over all batch dims at once."""
    if lower.shape[0] == 1:
        return jnp.ones_like(lower)
    half = lower.shape[0] // 2
    first, second = _small_inverse(lower[:half, :half]), _small_inverse(lower[half:, half:])
    below = (lower[half:, :half, None] * first[None]).sum(1)
    return _assembled(first, -(second[:, :, None] * below[None]).sum(1), second, 0)


def _assembled(first: Array, below: Array, second: Array, axis: int) -> Array:
    """``[[first, 0], [below, second]]`` of the matrices whose rows are ``axis``."""
    upper = jnp.concatenate([first, jnp.zeros_like(first)], axis + 1)
    return jnp.concatenate([upper, jnp.concatenate([below, second], axis + 1)], axis)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _inverse(*primals)
    return inverse, -(inverse @ (tangents[0] @ inverse))
