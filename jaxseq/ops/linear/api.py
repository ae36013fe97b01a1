"""Recurrences that are linear in their state: the public functions, their checks and the choice of implementation."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxseq.ops import segments
from jaxseq.ops.implementations import Choice, choose_implementation, implementation_scope, is_symbolic
from jaxseq.ops.linear.across_devices import AcrossDevices
from jaxseq.ops.linear.associative import associative
from jaxseq.ops.linear.chunkwise_delta_rule import chunkwise_delta_rule
from jaxseq.ops.linear.chunkwise_linear_attention import chunkwise_linear_attention
from jaxseq.ops.linear.chunkwise_mlstm import chunkwise_mlstm
from jaxseq.ops.linear.elementwise import Solver, solve
from jaxseq.ops.linear.loop import loop
from jaxseq.ops.linear.matrix_across_devices import matrix_states_across_devices
from jaxseq.ops.linear.reference import (
    MLSTMState,
    delta_rule_reference,
    linear_attention_reference,
    linear_recurrence_reference,
    mlstm_reference,
)
from jaxseq.ops.sequence_axis import document_starts, find_sequence_axis
from jaxseq.typing import Array, Float, Inexact, SegmentIds

LinearRecurrenceImplementation = Literal["auto", "loop", "associative", "reference"]
ChunkwiseImplementation = Literal["auto", "chunkwise", "reference"]
"""The implementations of ``linear_attention``, ``delta_rule`` and ``mlstm``."""

SOLVERS: dict[str, Solver] = {"loop": loop, "associative": associative}

REFERENCE_MAX_STEPS = 8
"""Up to this many steps ``"auto"`` takes the plain scan (``delta_rule``: one step)."""


def linear_recurrence(
    state: Inexact[Array, "*B F"],
    a: Inexact[Array, "*B T F"],
    b: Inexact[Array, "*B T F"],
    *,
    segment_ids: SegmentIds | None = None,
    implementation: LinearRecurrenceImplementation = "auto",
) -> tuple[Inexact[Array, "*B F"], Inexact[Array, "*B T F"]]:
    """Runs ``h_t = a_t ⊙ h_{t-1} + b_t`` along time, real or complex; returns the last state and all ``h_t``.

    Args:
      state: ``h`` before the first step. ``state``, ``a`` and ``b`` share one dtype.
      a: the decay; any value (products of decays are formed, never quotients). An exact zero discards the state before
        it, even an infinite or NaN one (in values and in reverse mode).
      b: the input.
      segment_ids: padded positions (0) are ignored; a change of id resets the state to zeros.
      implementation: ``"loop"`` (one step after another, in place), ``"associative"``
        (``jax.lax.associative_scan``: log T passes over everything; Blelloch 1990), ``"reference"`` (a plain scan) or
        ``"auto"`` (``linear_recurrence_implementation``).

    Raises:
      ValueError: shapes or dtypes differ, or the implementation is unknown.
    """
    if a.shape != b.shape or state.shape != (*a.shape[:-2], a.shape[-1]):
        raise ValueError(f"a {a.shape}, b {b.shape} ([*B, T, F]) and state {state.shape} ([*B, F]) do not agree")
    if not a.dtype == b.dtype == state.dtype:
        raise ValueError(f"a ({a.dtype}), b ({b.dtype}) and state ({state.dtype}) must share one dtype")
    segments.check("linear_recurrence", segment_ids, a.shape[:-1])
    chosen = choose_implementation(
        "linear_recurrence", implementation, LinearRecurrenceImplementation, lambda: _linear_recurrence_choice(a)
    )
    if a.shape[-2] == 0:
        return state, b
    axis = find_sequence_axis(a.shape[-2])
    with implementation_scope("linear_recurrence", chosen if axis is None else "sequence"):
        if chosen == "reference" and axis is None:
            return linear_recurrence_reference(state, a, b, segment_ids=segment_ids)
        if segment_ids is not None:
            starts = segments.starts(segment_ids) if axis is None else document_starts(axis, segment_ids)
            start, real = starts[..., None], segments.is_real(segment_ids)[..., None]
            a = jnp.where(real, jnp.where(start, jnp.zeros_like(a), a), jnp.ones_like(a))
            b = jnp.where(real, b, jnp.zeros_like(b))
        solver = SOLVERS["loop" if chosen == "reference" else chosen]
        if axis is not None:
            solver = AcrossDevices(axis, solver)
        states, last = solve(a, b, state, reverse=False, solver=solver)
    return last, states


def linear_recurrence_implementation(a: Inexact[Array, "*B T F"]) -> str:
    """The implementation that ``"auto"`` takes for this decay on the default device, for reports.

    A CPU has few lanes: the loop moves the fewest bytes and wins at every shape (docs/performance.md). On an
    accelerator a step of a loop takes longer than a pass over a sequence: log T passes, unless there is only one step.
    """
    return _linear_recurrence_choice(a).implementation


def _linear_recurrence_choice(a: Array) -> Choice:
    platform = jax.default_backend()
    if platform == "cpu":
        return Choice("loop", "the default device is cpu")
    if a.shape[-2] == 1:
        return Choice("loop", "there is one step")
    return Choice("associative", f"the default device is {platform}, and there are {a.shape[-2]} steps")


def linear_attention(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None = None,
    chunk: int | None = None,
    implementation: ChunkwiseImplementation = "auto",
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``S_t = exp(log_decay_t) ⊙ S_{t-1} + k_t v_tᵀ``, ``y_t = S_tᵀ q_t``; returns the last S and all ``y_t``.

    The decay is one number a head (Sun et al. 2023, arXiv:2307.08621; Dao & Gu 2024, arXiv:2405.21060) or one for every
    key channel (Yang et al. 2023, arXiv:2312.06635). Nothing is scaled inside. Computed in the state's dtype; ``y`` has
    the value's.

    Args:
      state: ``S`` before the first step, float32 or float64.
      query, key, value: any floating dtype.
      log_decay: the logarithm of the decay: finite and at most 0 (but for rounding). Only exponentials of its sums are
        formed, never of their negatives, so that any decay is safe.
      segment_ids: padded positions (0) are ignored, with outputs of 0; a change of id resets the state to zeros.
      chunk: positions that go through one matrix product; a power of two, chosen if None.
      implementation: ``"chunkwise"``, ``"reference"`` (a plain scan over time) or ``"auto"``: the reference for a few
        positions, else chunkwise.

    Raises:
      ValueError: shapes do not agree, the state has less than 32 bits, the chunk is not a power of two, or the
        implementation is unknown.
    """
    _check_chunk(chunk)
    _check_shapes(state, query, key, value, log_decay)
    segments.check("linear_attention", segment_ids, query.shape[:-2])
    chosen = _choose_chunkwise("linear_attention", implementation, query.shape[-3], REFERENCE_MAX_STEPS)
    if query.shape[-3] == 0:
        return state, value
    split = _over_ranks(linear_attention, chunk, implementation, state, (query, key, value, log_decay), segment_ids)
    if split is not None:
        return split
    with implementation_scope("linear_attention", chosen):
        if chosen == "reference":
            return linear_attention_reference(state, query, key, value, log_decay, segment_ids=segment_ids)
        arrays = segments.mask_and_cast(segment_ids, state.dtype, query, key, value, log_decay)
        state, out = chunkwise_linear_attention(state, *arrays, segment_ids=segment_ids, chunk=chunk)
        return state, segments.without_padding(out.astype(value.dtype), segment_ids)


def delta_rule(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    beta: Float[Array, "*B T N"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None = None,
    chunk: int | None = None,
    implementation: ChunkwiseImplementation = "auto",
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``S_t = (I - β_t k_t k_tᵀ) diag(exp(g_t)) S_{t-1} + β_t k_t v_tᵀ``, ``y_t = S_tᵀ q_t``: the last S, all y.

    With one decay a head the gated delta rule (Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464), with one for every
    key channel Kimi delta attention (Kimi Team 2025, arXiv:2510.26692); without decay the delta rule, whose chunkwise
    form is due to Yang et al. (2024, arXiv:2406.06484). Nothing is scaled or normalised inside: keys longer
    than ``sqrt(2 / β)`` make the state grow. Computed in the state's dtype; ``y`` has the value's.

    Args:
      state: ``S`` before the first step, float32 or float64.
      query, key, value: any floating dtype.
      beta: the fraction of the value stored at the key that is replaced, from 0 (none) to 1 (all).
      log_decay: the logarithm of the decay g, a head or a key channel: finite and at most 0. Only exponentials of
        numbers at most 0 are formed, so that any decay is safe.
      segment_ids: padded positions (0) are ignored, with outputs of 0; a change of id resets the state to zeros.
      chunk: positions that one triangular system covers; a power of two, chosen if None.
      implementation: ``"chunkwise"``, ``"reference"`` (a plain scan over time) or ``"auto"``: the reference for one
        position, else chunkwise.

    Raises:
      ValueError: shapes do not agree, the state has less than 32 bits, the chunk is not a power of two, or the
        implementation is unknown.
    """
    _check_chunk(chunk)
    _check_shapes(state, query, key, value, log_decay)
    if beta.shape != query.shape[:-1]:
        raise ValueError(f"beta {beta.shape} must be {query.shape[:-1]} ([*B, T, N])")
    segments.check("delta_rule", segment_ids, query.shape[:-2])
    chosen = _choose_chunkwise("delta_rule", implementation, query.shape[-3], 1)
    if query.shape[-3] == 0:
        return state, value
    split = _over_ranks(delta_rule, chunk, implementation, state, (query, key, value, beta, log_decay), segment_ids)
    if split is not None:
        return split
    with implementation_scope("delta_rule", chosen):
        if chosen == "reference":
            return delta_rule_reference(state, query, key, value, beta, log_decay, segment_ids=segment_ids)
        arrays = segments.mask_and_cast(segment_ids, state.dtype, query, key, value, beta, log_decay)
        state, out = chunkwise_delta_rule(state, *arrays, segment_ids=segment_ids, chunk=chunk)
        return state, out.astype(value.dtype)


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
    implementation: ChunkwiseImplementation = "auto",
) -> tuple[MLSTMState, Float[Array, "*B T N Hv"]]:
    """``C_t = f_t C_{t-1} + i_t k_t v_tᵀ``, ``n_t = f_t n_{t-1} + i_t k_t``, ``h_t = C_tᵀ q_t / max(|n_tᵀ q_t|, 1)``.

    ``i = exp(log_i)``, ``f = exp(log_f)`` (Beck et al. 2024, "xLSTM", arXiv:2405.04517, equations 19 to 27, before the
    output gate; C is transposed here). The state holds ``C exp(-m)`` with ``m_t = max(m_{t-1} + log f_t, log i_t, 0)``:
    the paper's stabiliser, bounded below by 0, where nothing overflows. Keys are not scaled inside.

    Args:
      state: the state before the first step, float32 or float64; zeros for a fresh one.
      query, key, value: any floating dtype.
      log_i: the logarithm of the input gate, any finite number.
      log_f: the logarithm of the forget gate, finite and at most 0.
      segment_ids: padded positions (0) are ignored, with outputs of 0; a change of id resets the state to zeros.
      chunk: positions that go through one matrix product; a power of two, chosen if None.
      implementation: ``"chunkwise"``, ``"reference"`` (a plain scan over time) or ``"auto"``: the reference for a few
        positions, else chunkwise.

    Raises:
      ValueError: as ``linear_attention``.
    """
    if log_i.shape != query.shape[:-1] or log_f.shape != query.shape[:-1]:
        raise ValueError(f"log_i {log_i.shape} and log_f {log_f.shape} must be {query.shape[:-1]} ([*B, T, N])")
    _check_chunk(chunk)
    _check_shapes(state.C, query, key, value, log_f)
    segments.check("mlstm", segment_ids, query.shape[:-2])
    if state.n.shape != state.C.shape[:-1] or state.m.shape != state.C.shape[:-2]:
        wanted = f"{state.C.shape[:-1]} and {state.C.shape[:-2]}"
        raise ValueError(f"state n {state.n.shape} and m {state.m.shape} must be {wanted}")
    chosen = _choose_chunkwise("mlstm", implementation, query.shape[-3], REFERENCE_MAX_STEPS)
    if query.shape[-3] == 0:
        return state, value
    split = _over_ranks(mlstm, chunk, implementation, state, (query, key, value, log_i, log_f), segment_ids)
    if split is not None:
        return split
    with implementation_scope("mlstm", chosen):
        if chosen == "reference":
            return mlstm_reference(state, query, key, value, log_i, log_f, segment_ids=segment_ids)
        arrays = segments.mask_and_cast(segment_ids, state.C.dtype, query, key, value, log_i, log_f)
        state, out = chunkwise_mlstm(state, *arrays, segment_ids=segment_ids, chunk=chunk)
        return state, out.astype(value.dtype)


def _over_ranks(
    op: Callable, chunk: int | None, implementation: str, state: Any, arrays: tuple, segment_ids: SegmentIds | None
) -> tuple[Any, Array] | None:
    """The call split over the axis ``sequence`` of the ambient mesh; None if it is not to be split."""
    axis = find_sequence_axis(arrays[0].shape[-3])
    if axis is None:
        return None
    run = functools.partial(op, chunk=chunk, implementation=implementation)
    with implementation_scope(op.__name__, "sequence"):
        return matrix_states_across_devices(op.__name__, axis, run, state, arrays, segment_ids)


def _choose_chunkwise(op: str, implementation: str, steps: int, reference_max_steps: int) -> str:
    if is_symbolic(steps):
        auto = Choice("reference", "the number of steps is free")
    else:
        few = steps <= reference_max_steps
        reason = f"{steps} steps are {'at most' if few else 'more than'} {reference_max_steps}"
        auto = Choice("reference" if few else "chunkwise", reason)
    return choose_implementation(op, implementation, ChunkwiseImplementation, lambda: auto)


def _check_chunk(chunk: int | None) -> None:
    """Raises ValueError unless the chunk is None or a power of two."""
    if chunk is not None and (chunk < 1 or chunk & (chunk - 1)):
        raise ValueError(f"chunk={chunk} is not a power of two")


def _check_shapes(state: Array, query: Array, key: Array, value: Array, log_decay: Array) -> None:
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
