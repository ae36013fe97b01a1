"""Linear attention with decay: a matrix state, a product of keys and values, read by queries.

The step form touches the whole state at every position. The chunkwise form touches it once a chunk: within a chunk,
outputs are matrix products of queries, keys and values under a mask of decays; between chunks, a short scan over states
(Hua et al. 2022, arXiv:2202.10447; Sun et al. 2023, arXiv:2307.08621; Yang et al. 2023, arXiv:2312.06635; Dao & Gu
2024, arXiv:2405.21060).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.implementations import running
from jaxseq.ops.linear.chunkwise import chunkwise
from jaxseq.typing import Array, DType, Float, SegmentIds

IMPLEMENTATIONS = ("chunkwise", "sequential")
FEW_STEPS = 8


def linear_attention(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None = None,
    chunk: int | None = None,
    implementation: str = "auto",
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``S_t = exp(log_decay_t) ⊙ S_{t-1} + k_t v_tᵀ``, ``y_t = S_tᵀ q_t``; returns the last state and all ``y_t``.

    Nothing is scaled inside. The decay is one number a head, or one for every key channel. It is computed in the
    state's dtype; ``y`` comes back in the value's.

    Args:
      query, key, value: what is asked, where it is kept, what is kept; float32, float64 or less.
      log_decay: the logarithm of the decay: finite and at most 0 (but for rounding). Exponentials of sums of them alone
        are formed, never of their negatives, so that any decay is safe.
      state: ``S`` before the first step, float32 or float64.
      segment_ids: 0 is padding (the state stands still, outputs are 0), a change of id begins again from zeros.
      chunk: positions that go through one matrix product; a power of two, chosen unless given.
      implementation: ``"chunkwise"``, ``"sequential"`` (a scan over time) or ``"auto"``: step by step for a few
        positions, else by chunks.

    Raises:
      ValueError: shapes do not agree, the state is of less than 32 bits, the chunk is not a power of two, or the
        implementation is unknown.
    """
    if implementation not in (*IMPLEMENTATIONS, "auto"):
        raise ValueError(f"implementation={implementation!r}; known: {', '.join(('auto', *IMPLEMENTATIONS))}")
    check_chunk(chunk)
    check_shapes(state, query, key, value, log_decay)
    segments.check(segment_ids, query.shape[:-2])
    if implementation == "auto":
        implementation = "sequential" if query.shape[-3] <= FEW_STEPS else "chunkwise"
    dtype, time = value.dtype, query.shape[-3]
    if time == 0:
        return state, value
    with running("linear_attention", implementation):
        if implementation == "sequential":
            return linear_attention_reference(state, query, key, value, log_decay, segment_ids=segment_ids)
        query, key, value, log_decay = without_padding(segment_ids, state.dtype, query, key, value, log_decay)
        chunk = chunk or (32 if log_decay.ndim == query.ndim else 64)
        chunk = min(chunk, 1 << (time - 1).bit_length())
        state, out = chunkwise(state, query, key, value, log_decay, segment_ids, chunk)
        return state, without_padding(segment_ids, dtype, out)[0]


def linear_attention_reference(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``linear_attention`` as it is written on paper, one step after another, with the gradient JAX gives a scan."""
    dtype, batch = value.dtype, query.ndim - 3
    query, key, value, log_decay = without_padding(segment_ids, state.dtype, query, key, value, log_decay)
    if log_decay.ndim < query.ndim:
        log_decay = log_decay[..., None]
    starts = None if segment_ids is None else segments.starts(segment_ids, segments.no_ids(segment_ids))

    def step(state: Array, at: tuple) -> tuple[Array, Array]:
        q, k, v, decay, start = at
        if start is not None:
            state = jnp.where(start[..., None, None, None], jnp.zeros_like(state), state)
        state = jnp.exp(decay)[..., None] * state + k[..., :, None] * v[..., None, :]
        return state, (q[..., None] * state).sum(-2)

    at = jax.tree.map(lambda z: jnp.moveaxis(z, batch, 0), (query, key, value, log_decay, starts))
    state, out = lax.scan(step, state, at)
    return state, without_padding(segment_ids, dtype, jnp.moveaxis(out, 0, batch))[0]


def without_padding(segment_ids: SegmentIds | None, dtype: DType, *arrays: Array) -> list[Array]:
    """In one dtype, and zeros at padding, whatever stood there."""
    arrays = tuple(array.astype(dtype) for array in arrays)
    if segment_ids is None:
        return list(arrays)
    real = segments.is_real(segment_ids)
    over = [real.reshape(*real.shape, *(1,) * (array.ndim - real.ndim)) for array in arrays]
    return [jnp.where(mark, array, jnp.zeros_like(array)) for mark, array in zip(over, arrays, strict=True)]


def check_chunk(chunk: int | None) -> None:
    """Raises ValueError for what is no power of two."""
    if chunk is not None and (chunk < 1 or chunk & (chunk - 1)):
        raise ValueError(f"chunk={chunk} is not a power of two")


def check_shapes(state: Array, query: Array, key: Array, value: Array, log_decay: Array) -> None:
    """Raises ValueError for shapes that do not agree and for a state of less than 32 bits."""
    if query.ndim < 3 or key.shape != query.shape or value.shape[:-1] != query.shape[:-1]:
        raise ValueError(
            f"query {query.shape}, key {key.shape} ([*B, T, N, H]) and value {value.shape} ([*B, T, N, Hv]) disagree"
        )
    if log_decay.shape not in (query.shape, query.shape[:-1]):
        raise ValueError(f"log_decay {log_decay.shape} is neither {query.shape[:-1]} nor {query.shape}")
    wanted = (*query.shape[:-3], query.shape[-2], query.shape[-1], value.shape[-1])
    if state.shape != wanted:
        raise ValueError(f"state {state.shape} must be {wanted} ([*B, N, H, Hv])")
    if jnp.finfo(state.dtype).bits < 32:
        raise ValueError(f"the state is {state.dtype}; it must be of 32 bits at least")
