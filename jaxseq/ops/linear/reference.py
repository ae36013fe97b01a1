"""Reference implementations of the linear recurrences: one step after another, with the gradient of ``lax.scan``."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.typing import Array, Float, Inexact, SegmentIds


class MLSTMState(NamedTuple):
    """Memory and normaliser, both divided by ``exp(m)``, and the stabiliser m, at least 0. Zeros are a fresh state.

    m is a scale, not a value: gradients treat it as a constant, which is right for everything that depends on
    ``C exp(m)`` and ``n exp(m)``, as every output does.
    """

    C: Float[Array, "*B N H Hv"]
    n: Float[Array, "*B N H"]
    m: Float[Array, "*B N"]


def linear_recurrence_reference(
    state: Inexact[Array, "*B F"],
    a: Inexact[Array, "*B T F"],
    b: Inexact[Array, "*B T F"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Inexact[Array, "*B F"], Inexact[Array, "*B T F"]]:
    """The equation of ``linear_recurrence``."""
    a, b = segments.mask_and_cast(segment_ids, state.dtype, a, b)

    def step(h: Array, at: tuple) -> tuple[Array, Array]:
        (a, b), (start, real) = at
        h = segments.hold(a * segments.reset(h, start) + b, h, real)
        return h, h

    return _scan(step, state, (a, b), segment_ids, a.ndim - 2)


def linear_attention_reference(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """The equation of ``linear_attention``."""
    arrays = segments.mask_and_cast(segment_ids, state.dtype, query, key, value, log_decay)
    if log_decay.ndim < query.ndim:
        arrays[-1] = arrays[-1][..., None]

    def step(state: Array, at: tuple) -> tuple[Array, Array]:
        (q, k, v, decay), (start, _) = at
        state = segments.reset(state, start)
        state = jnp.exp(decay)[..., None] * state + k[..., :, None] * v[..., None, :]
        return state, (q[..., None] * state).sum(-2)

    state, out = _scan(step, state, arrays, segment_ids, query.ndim - 3)
    return state, segments.without_padding(out.astype(value.dtype), segment_ids)


def delta_rule_reference(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    beta: Float[Array, "*B T N"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """The equation of ``delta_rule``."""

    def step(state: Array, at: tuple) -> tuple[Array, Array]:
        (q, k, v, beta, log_decay), (start, _) = at
        state = jnp.exp(log_decay)[..., None] * segments.reset(state, start)
        error = v - (k[..., None] * state).sum(-2)
        state = state + k[..., :, None] * (beta[..., None] * error)[..., None, :]
        return state, (q[..., None] * state).sum(-2)

    arrays = segments.mask_and_cast(segment_ids, state.dtype, query, key, value, beta, log_decay)
    if log_decay.ndim < query.ndim:
        arrays[-1] = arrays[-1][..., None]
    state, out = _scan(step, state, arrays, segment_ids, query.ndim - 3)
    return state, out.astype(value.dtype)


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
    """The equation of ``mlstm``."""

    def step(state: MLSTMState, at: tuple) -> tuple[MLSTMState, Array]:
        (q, k, v, log_i, log_f), (start, real) = at
        state = segments.reset(state, start)
        m = lax.stop_gradient(jnp.maximum(jnp.maximum(state.m + log_f, log_i), 0))
        i, f = jnp.exp(log_i - m), jnp.exp(log_f + (lax.stop_gradient(state.m) - m))
        n = f[..., None] * state.n + i[..., None] * k
        C = f[..., None, None] * state.C + (i[..., None] * k)[..., :, None] * v[..., None, :]
        out = normalize((q[..., None] * C).sum(-2), (n * q).sum(-1, keepdims=True), m)
        return MLSTMState(C, n, segments.hold(m, state.m, real)), out

    arrays = segments.mask_and_cast(segment_ids, state.C.dtype, query, key, value, log_i, log_f)
    state, out = _scan(step, state, arrays, segment_ids, query.ndim - 3)
    return state, out.astype(value.dtype)


def normalize(numerator: Array, denominator: Array, m: Array) -> Array:
    """The mLSTM's ``numerator / max(|denominator|, exp(-m))``, with a lower bound that keeps gradients finite."""
    smallest = float(jnp.finfo(m.dtype).tiny) ** (1 / 3)  # the square of its inverse, in the gradient, is finite too
    return numerator / jnp.maximum(jnp.abs(denominator), jnp.maximum(jnp.exp(-m), smallest)[..., None])


def _scan(step: Any, state: Any, arrays: Any, segment_ids: SegmentIds | None, axis: int) -> tuple[Any, Array]:
    """``state, out = step(state, (arrays, masks))`` along the time axis."""
    inputs = tuple(arrays), segments.masks(segment_ids)
    state, out = lax.scan(step, state, jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), inputs))
    return state, jnp.moveaxis(out, 0, axis)
