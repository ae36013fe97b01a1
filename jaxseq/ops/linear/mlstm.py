"""The matrix memory of the mLSTM: linear attention with an exponential input gate, a normaliser and a stabiliser.

Once the stabiliser is known, memory and normaliser are one linear attention, whose values have a column of ones: the
chunkwise form is that of ``linear_attention``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.implementations import running
from jaxseq.ops.linear.linear_attention import (
    FEW_STEPS,
    IMPLEMENTATIONS,
    check_chunk,
    check_shapes,
    linear_attention,
    without_padding,
)
from jaxseq.typing import Array, Float, SegmentIds


class MLSTMState(NamedTuple):
    """Memory and normaliser, both divided by ``exp(m)``, and m, at least 0. Zeros are a fresh state.

    m is a scale and no value: gradients take it for a constant, which is right for all that depends on ``C exp(m)`` and
    ``n exp(m)``, as every output does.
    """

    C: Float[Array, "*B N H Hv"]
    n: Float[Array, "*B N H"]
    m: Float[Array, "*B N"]


def mlstm(
    state: MLSTMState,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_i: Float[Array, "*B T N"],
    log_f: Float[Array, "*B T N"],
    *,
    segment_ids: SegmentIds | None = None,
    chunk: int | None = None,
    implementation: str = "auto",
) -> tuple[MLSTMState, Float[Array, "*B T N Hv"]]:
    """``C_t = f_t C_{t-1} + i_t k_t v_tᵀ``, ``n_t = f_t n_{t-1} + i_t k_t``, ``h_t = C_tᵀ q_t / max(|n_tᵀ q_t|, 1)``.

    ``i = exp(log_i)``, ``f = exp(log_f)`` (Beck et al. 2024, "xLSTM", arXiv:2405.04517, equations 19 to 27,
    before the output gate; C is transposed here). Held as ``C exp(-m)`` with ``m_t = max(m_{t-1} + log f_t, log i_t,
    0)``: the paper's stabiliser, kept from falling below 0, where nothing overflows. Keys are not scaled inside.

    Args:
      query, key, value: what is asked, where it is kept, what is kept; float32, float64 or less.
      log_i: the logarithm of the input gate, any finite number.
      log_f: the logarithm of the forget gate, finite and at most 0.
      state: before the first step, float32 or float64; zeros if nothing was seen.
      segment_ids: 0 is padding (the state stands still, outputs are 0), a change of id begins again from zeros.
      chunk: positions that go through one matrix product; a power of two, chosen unless given.
      implementation: ``"chunkwise"``, ``"sequential"`` (a scan over time) or ``"auto"``.

    Raises:
      ValueError: as ``linear_attention``.
    """
    if implementation not in (*IMPLEMENTATIONS, "auto"):
        raise ValueError(f"implementation={implementation!r}; known: {', '.join(('auto', *IMPLEMENTATIONS))}")
    if log_i.shape != query.shape[:-1] or log_f.shape != query.shape[:-1]:
        raise ValueError(f"log_i {log_i.shape} and log_f {log_f.shape} must be {query.shape[:-1]}")
    check_chunk(chunk)
    check_shapes(state.C, query, key, value, log_f)
    segments.check(segment_ids, query.shape[:-2])
    if state.n.shape != state.C.shape[:-1] or state.m.shape != state.C.shape[:-2]:
        wanted = f"{state.C.shape[:-1]} and {state.C.shape[:-2]}"
        raise ValueError(f"state n {state.n.shape} and m {state.m.shape} must be {wanted}")
    few = query.shape[-3] <= FEW_STEPS
    if implementation == "sequential" or (implementation == "auto" and few):
        with running("mlstm", "sequential"):
            return mlstm_reference(state, query, key, value, log_i, log_f, segment_ids=segment_ids)
    out_dtype = value.dtype
    q, k, v, log_i, log_f = without_padding(segment_ids, state.C.dtype, query, key, value, log_i, log_f)
    m, before = lax.stop_gradient(_stabiliser(log_i, log_f, state.m, segment_ids))
    S, out = linear_attention(
        jnp.concatenate([state.C, state.n[..., None]], -1),
        q,
        k * jnp.exp(log_i - m)[..., None],
        jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1),
        log_f + (before - m),  # m may be so large that a small log_f is lost in it
        segment_ids=segment_ids,
        chunk=chunk,
        implementation="chunkwise",
    )
    m_last = state.m
    if m.shape[-2]:
        m_last = m[..., -1, :]
        if segment_ids is not None:  # over nothing but padding, the state stands still, its gradient too
            m_last = jnp.where(segments.is_real(segment_ids).any(-1, keepdims=True), m_last, state.m)
    return MLSTMState(S[..., :-1], S[..., -1], m_last), _normalised(out[..., :-1], out[..., -1:], m).astype(out_dtype)


def mlstm_reference(
    state: MLSTMState,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_i: Float[Array, "*B T N"],
    log_f: Float[Array, "*B T N"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[MLSTMState, Float[Array, "*B T N Hv"]]:
    """``mlstm`` as it is written on paper, one step after another, with the gradient JAX gives a scan."""
    out_dtype, batch = value.dtype, query.ndim - 3
    arrays = without_padding(segment_ids, state.C.dtype, query, key, value, log_i, log_f)
    starts, real = None, None
    if segment_ids is not None:
        starts, real = segments.starts(segment_ids, segments.no_ids(segment_ids)), segments.is_real(segment_ids)

    def step(state: MLSTMState, at: tuple) -> tuple[MLSTMState, Array]:
        q, k, v, log_i, log_f, start, real = at
        if start is not None:
            over = (start.reshape(*start.shape, *(1,) * (s.ndim - start.ndim)) for s in state)
            state = MLSTMState(*(jnp.where(mark, jnp.zeros_like(s), s) for mark, s in zip(over, state, strict=True)))
        m = lax.stop_gradient(jnp.maximum(jnp.maximum(state.m + log_f, log_i), 0))
        i, f = jnp.exp(log_i - m), jnp.exp(log_f + (lax.stop_gradient(state.m) - m))
        n = f[..., None] * state.n + i[..., None] * k
        C = f[..., None, None] * state.C + (i[..., None] * k)[..., :, None] * v[..., None, :]
        out = _normalised((q[..., None] * C).sum(-2), (n * q).sum(-1, keepdims=True), m)
        return MLSTMState(C, n, m if real is None else jnp.where(real[..., None], m, state.m)), out

    at = jax.tree.map(lambda z: jnp.moveaxis(z, batch, 0), (*arrays, starts, real))
    state, out = lax.scan(step, state, at)
    return state, jnp.moveaxis(out, 0, batch).astype(out_dtype)


def _stabiliser(log_i: Array, log_f: Array, m: Array, segment_ids: Array | None) -> tuple[Array, Array]:
    """``m_t = max(m_{t-1} + log f_t, log i_t, 0)`` for all t, and what stood before each (0 before a document)."""
    start = jnp.zeros((*(1 for _ in log_f.shape[:-1]), 1), bool)
    if segment_ids is not None:
        start = segments.starts(segment_ids, segments.no_ids(segment_ids))[..., None]

    def after(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] + then[0], jnp.maximum(first[1] + then[0], then[1])

    if not log_f.shape[-2]:
        return log_f, log_f
    falls = jnp.where(start, -jnp.inf, log_f)
    fall, most = lax.associative_scan(after, (falls, jnp.maximum(log_i, 0)), axis=log_f.ndim - 2)
    reached = fall > -jnp.inf  # an infinite m ends at a document's start
    ms = jnp.where(reached, jnp.maximum(most, jnp.where(reached, m[..., None, :], 0) + fall), most)
    before = jnp.concatenate([m[..., None, :], ms[..., :-1, :]], -2)
    return ms, jnp.where(start, jnp.zeros_like(before), before)


def _normalised(numerator: Array, denominator: Array, m: Array) -> Array:
    """``numerator / max(|denominator|, exp(-m))``; where even that vanishes, nothing is divided by 0."""
    least = float(jnp.finfo(m.dtype).tiny) ** (1 / 3)  # the square of its inverse, in the gradient, is finite too
    return numerator / jnp.maximum(jnp.abs(denominator), jnp.maximum(jnp.exp(-m), least)[..., None])
