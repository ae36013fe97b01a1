"""The chunkwise implementation of the mLSTM.

Once the stabiliser is known, memory and normaliser are one linear attention whose values have a column of ones: the
rest is chunkwise linear attention.
"""

import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.linear.chunkwise_linear_attention import chunkwise_linear_attention
from jaxseq.ops.linear.reference import MLSTMState, normalize
from jaxseq.typing import Array, Float, SegmentIds


def chunkwise_mlstm(
    state: MLSTMState,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_i: Float[Array, "*B T N"],
    log_f: Float[Array, "*B T N"],
    *,
    segment_ids: SegmentIds | None,
    chunk: int | None,
) -> tuple[MLSTMState, Float[Array, "*B T N Hv"]]:
    """The last state and all outputs; all arrays in one dtype, with zeros at padded positions, at least one step."""
    m, before = lax.stop_gradient(_stabilizer(log_i, log_f, state.m, segment_ids))
    key = key * jnp.exp(log_i - m)[..., None]
    values = jnp.concatenate([value, jnp.ones_like(value[..., :1])], -1)
    log_decay = log_f + (before - m)  # m may be so large that a small log_f is lost in it
    arrays = segments.mask_and_cast(segment_ids, value.dtype, query, key, values, log_decay)
    memory = jnp.concatenate([state.C, state.n[..., None]], -1)
    S, out = chunkwise_linear_attention(memory, *arrays, segment_ids=segment_ids, chunk=chunk)
    out = segments.without_padding(out, segment_ids)
    last = m[..., -1, :]
    if segment_ids is not None:  # with padding only, the state and its gradient stay as they are
        last = jnp.where(segments.is_real(segment_ids).any(-1, keepdims=True), last, state.m)
    return MLSTMState(S[..., :-1], S[..., -1], last), normalize(out[..., :-1], out[..., -1:], m)


def _stabilizer(log_i: Array, log_f: Array, m: Array, segment_ids: Array | None) -> tuple[Array, Array]:
    """``m_t = max(m_{t-1} + log f_t, log i_t, 0)`` for all t, and the m before each (0 at a document's start)."""
    start = jnp.zeros((*(1 for _ in log_f.shape[:-1]), 1), bool)
    if segment_ids is not None:
        start = segments.starts(segment_ids)[..., None]

    def after(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] + then[0], jnp.maximum(first[1] + then[0], then[1])

    falls = jnp.where(start, -jnp.inf, log_f)
    fall, largest = lax.associative_scan(after, (falls, jnp.maximum(log_i, 0)), axis=log_f.ndim - 2)
    reached = fall > -jnp.inf  # an infinite m ends at a document's start
    ms = jnp.where(reached, jnp.maximum(largest, jnp.where(reached, m[..., None, :], 0) + fall), largest)
    before = jnp.concatenate([m[..., None, :], ms[..., :-1, :]], -2)
    return ms, jnp.where(start, jnp.zeros_like(before), before)
