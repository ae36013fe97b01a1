"""Matrix-state recurrences with their positions sharded over devices.

A rank's segment maps the state before it, S, to an affine function of it. The ranks exchange these maps, whose size
does not depend on the length, by an exclusive scan (``exclusive_scan``):

    linear_attention    S -> a ⊙ S + B, a = exp(Σ log_decay); then y_t += (q_t ⊙ a_t)ᵀ S, one product a segment
    delta_rule          S -> A S + B, A a matrix [H, H] a head: the segment runs once from the columns [0, I], whose
                        outputs [y, Z] give y_t += z_tᵀ S
    mlstm               S -> a S + B, scaled by its stabiliser m; the segment runs once more from the right state,
                        because its outputs are not linear in the state

The equations of the maps are those of one device; a document that starts in a segment makes ``a`` and A zero.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.linear.reference import MLSTMState
from jaxseq.ops.sequence_axis import (
    SEQUENCE,
    SequenceAxis,
    exclusive_scan,
    from_last_rank,
    spec,
    starts_afresh,
)
from jaxseq.typing import Array, Bool, Float, SegmentIds

Run = Callable[..., tuple[Any, Array]]
"""``run(state, *arrays, segment_ids=ids) -> (state, out)``: the op as one device computes it."""


def matrix_states_across_devices(
    op: str, axis: SequenceAxis, run: Run, state: Any, arrays: tuple[Array, ...], segment_ids: SegmentIds | None
) -> tuple[Any, Array]:
    """``run(state, *arrays, segment_ids=segment_ids)`` of the op of this name, every rank for its segment.

    Arrays are ``[*B, T, N, ...]``, states ``[*B, N, ...]``. Heads are sharded over "tensor" where it divides them.
    """
    query = arrays[0]
    rows, heads = axis.rows(query.shape[:-3]), axis.heads(query.shape[-2])
    on_segment = functools.partial(_SEGMENTS[op], axis.size, run)
    states = jax.tree.map(lambda s: spec(*rows, heads), state)
    along = tuple(spec(*rows, SEQUENCE, heads) for _ in arrays)
    ids = None if segment_ids is None else spec(*rows, SEQUENCE)
    split = axis.map(on_segment, (states, along, ids), (states, along[0]))
    result: tuple[Any, Array] = split(state, arrays, segment_ids)
    return result


def _linear_attention(
    size: int, run: Run, state: Array, arrays: tuple[Array, ...], ids: SegmentIds | None
) -> tuple[Array, Array]:
    query, _, value, log_decay = arrays
    fresh = starts_afresh(ids, size)
    B, out = run(jnp.zeros_like(state), *arrays[:2], value.astype(state.dtype), log_decay, segment_ids=ids)
    log_decay = segments.without_padding(log_decay.astype(state.dtype), ids)
    if log_decay.ndim < query.ndim:
        log_decay = log_decay[..., None]
    sums = jnp.cumsum(log_decay, axis=log_decay.ndim - 3)
    continued = _continues(ids, fresh)
    a = segments.reset(jnp.exp(sums[..., -1, :, :])[..., None], _not(_last(continued)))

    def combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], _scaled(later[0], earlier[1]) + later[1]

    nothing = jnp.zeros_like(a)
    incoming = exclusive_scan(combine, (nothing, state), (a, B), size)[1]
    q = segments.without_padding(query.astype(state.dtype), ids) * jnp.exp(sums)
    read = segments.reset(q, _not(continued))
    correction = _read(read, segments.reset(incoming, fresh))
    last = combine((nothing, incoming), (a, B))[1]
    out = out + segments.reset(correction, _not(continued))
    return from_last_rank(last, size), segments.without_padding(out.astype(value.dtype), ids)


def _delta_rule(
    size: int, run: Run, state: Array, arrays: tuple[Array, ...], ids: SegmentIds | None
) -> tuple[Array, Array]:
    query, key, value, *gates = arrays
    fresh = starts_afresh(ids, size)
    width, values = query.shape[-1], value.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(width, dtype=state.dtype), (*state.shape[:-1], width))
    wide = value.astype(state.dtype)
    wide = jnp.concatenate([wide, jnp.zeros((*wide.shape[:-1], width), wide.dtype)], axis=-1)
    begin = jnp.concatenate([jnp.zeros_like(state), identity], axis=-1)
    ends, out = run(begin, query, key, wide, *gates, segment_ids=ids)
    (B, A), (y, Z) = (jnp.split(x, [values], axis=-1) for x in (ends, out))
    A = segments.reset(A, fresh)

    def combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return _product(later[0], earlier[0]), _product(later[0], earlier[1]) + later[1]

    nothing = jnp.zeros_like(A)
    incoming = segments.reset(exclusive_scan(combine, (nothing, state), (A, B), size)[1], fresh)
    last = _product(A, incoming) + B
    correction = segments.reset(_read(Z, incoming), _not(_continues(ids, fresh)))
    return from_last_rank(last, size), (y + correction).astype(value.dtype)


def _mlstm(
    size: int, run: Run, state: MLSTMState, arrays: tuple[Array, ...], ids: SegmentIds | None
) -> tuple[MLSTMState, Array]:
    log_f = segments.without_padding(arrays[-1].astype(state.m.dtype), ids)
    fresh = starts_afresh(ids, size)
    own, _ = run(jax.tree.map(jnp.zeros_like, state), *arrays, segment_ids=ids)
    fall = log_f.sum(-2)
    continued = _last(_continues(ids, fresh))
    if continued is not None:
        fall = segments.select(continued, fall, jnp.full_like(fall, -jnp.inf))

    def combine(earlier: tuple[Array, MLSTMState], later: tuple[Array, MLSTMState]) -> tuple[Array, MLSTMState]:
        (fall_1, first), (fall_2, then) = earlier, later
        reached = fall_2 > -jnp.inf
        safe = jnp.where(reached, fall_2, 0)
        m = jnp.where(reached, jnp.maximum(first.m + lax.stop_gradient(safe), then.m), then.m)
        a, b = jnp.exp(jnp.where(reached, first.m - m + safe, -jnp.inf)), jnp.exp(then.m - m)
        C = _scaled(a[..., None, None], first.C) + b[..., None, None] * then.C
        n = _scaled(a[..., None], first.n) + b[..., None] * then.n
        return jnp.where(reached, fall_1 + safe, -jnp.inf), MLSTMState(C, n, m)

    state, own = (s._replace(m=lax.stop_gradient(s.m)) for s in (state, own))
    nothing = jnp.full_like(fall, -jnp.inf)
    incoming = segments.reset(exclusive_scan(combine, (nothing, state), (fall, own), size)[1], fresh)
    last, out = run(incoming, *arrays, segment_ids=ids)
    return from_last_rank(last, size), out


_SEGMENTS: dict[str, Callable] = {"linear_attention": _linear_attention, "delta_rule": _delta_rule, "mlstm": _mlstm}


def _continues(ids: SegmentIds | None, fresh: Bool[Array, "*B"] | None) -> Bool[Array, "*B T"] | None:
    """True where no document has started on this rank, at its first position included; None: everywhere."""
    if ids is None or fresh is None:
        return None
    return ~(fresh[..., None] | (jnp.cumsum(segments.starts(ids), axis=-1, dtype=jnp.int32) > 0))


def _last(continued: Bool[Array, "*B T"] | None) -> Bool[Array, "*B"] | None:
    return None if continued is None else continued[..., -1]


def _not(mask: Array | None) -> Array | None:
    return None if mask is None else ~mask


def _scaled(a: Array, state: Array) -> Array:
    """``a ⊙ state``, with 0 where a is 0, even for an infinite or NaN state."""
    return jnp.where(a == 0, jnp.zeros_like(state), a * state)


def _product(A: Float[Array, "*B N H H"], S: Float[Array, "*B N H W"]) -> Float[Array, "*B N H W"]:
    """``A S``; where A is zero (a document has started) the result is, even for an infinite or NaN S."""
    none = (A == 0).all((-2, -1), keepdims=True)
    return jnp.matmul(A, jnp.where(none, jnp.zeros_like(S), S), precision="highest")


def _read(q: Float[Array, "*B T N H"], S: Float[Array, "*B N H W"]) -> Float[Array, "*B T N W"]:
    """``q_tᵀ S`` for all t."""
    return jnp.swapaxes(jnp.swapaxes(q, -2, -3) @ S, -2, -3)
