"""Elementwise linear recurrence ``h_t = a_t ⊙ h_{t-1} + b_t``, real or complex.

A small JAX primitive, linear in ``b`` and the first state: its tangent is the same recurrence of ``da_t ⊙ h_{t-1} +
db_t``, its transpose the same recurrence run backwards. So each implementation is two plain functions of arrays, and
forward mode, reverse mode, second derivatives and ``vmap`` (one more batch dimension) follow.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops import segments
from jaxseq.ops.implementations import running
from jaxseq.typing import Array, Inexact, SegmentIds


def linear_recurrence(
    state: Inexact[Array, "*B F"],
    a: Inexact[Array, "*B T F"],
    b: Inexact[Array, "*B T F"],
    *,
    segment_ids: SegmentIds | None = None,
    implementation: str = "auto",
) -> tuple[Inexact[Array, "*B F"], Inexact[Array, "*B T F"]]:
    """Runs ``h_t = a_t ⊙ h_{t-1} + b_t`` along time; returns the last state and all ``h_t``.

    Args:
      a: the decay; any value (products of decays are formed, never quotients). An exact zero forgets what was
        before it, even if that was infinite or NaN (in values and in reverse mode).
      b: what is added.
      state: ``h`` before the first step. ``a``, ``b`` and ``state`` share one dtype.
      segment_ids: 0 is padding (the state stands still), a change of id begins again from zeros.
      implementation: ``"sequential"`` (one step after another, in place), ``"associative"``
        (``jax.lax.associative_scan``: log T passes over everything; Blelloch 1990) or ``"auto"``
        (``linear_recurrence_implementation``).

    Raises:
      ValueError: shapes or dtypes differ, or the implementation is unknown.
    """
    if implementation not in (*IMPLEMENTATIONS, "auto"):
        known = ", ".join(("auto", *IMPLEMENTATIONS))
        raise ValueError(f"implementation={implementation!r}; known: {known}")
    if a.shape != b.shape or state.shape != (*a.shape[:-2], a.shape[-1]):
        raise ValueError(f"a {a.shape}, b {b.shape} ([*B, T, F]) and state {state.shape} ([*B, F]) do not agree")
    if not a.dtype == b.dtype == state.dtype:
        raise ValueError(f"a ({a.dtype}), b ({b.dtype}) and state ({state.dtype}) must share one dtype")
    segments.check(segment_ids, a.shape[:-1])
    if a.shape[-2] == 0:
        return state, b
    if segment_ids is not None:
        start, real = _marks(segment_ids)
        a = jnp.where(real, jnp.where(start, jnp.zeros_like(a), a), jnp.ones_like(a))
        b = jnp.where(real, b, jnp.zeros_like(b))
    if implementation == "auto":
        implementation = linear_recurrence_implementation(a)
    with running("linear_recurrence", implementation):
        states, last = _solve(a, b, state, reverse=False, implementation=implementation)
    return last, states


def linear_recurrence_implementation(a: Inexact[Array, "*B T F"]) -> str:
    """What ``implementation="auto"`` takes for this decay on the default device, for reports.

    A CPU has few lanes, and the fewest bytes moved win at every shape (docs/performance.md). An accelerator waits
    for each step of a loop longer than a pass over a sequence takes: log T passes, unless there is but one step.
    """
    return "sequential" if jax.default_backend() == "cpu" or a.shape[-2] == 1 else "associative"


def linear_recurrence_reference(
    state: Inexact[Array, "*B F"],
    a: Inexact[Array, "*B T F"],
    b: Inexact[Array, "*B T F"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Inexact[Array, "*B F"], Inexact[Array, "*B T F"]]:
    """``linear_recurrence`` as it is written on paper, with the gradient JAX gives a scan."""
    ids = jnp.ones(a.shape[:-1], jnp.int32) if segment_ids is None else segment_ids

    def step(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        a, b, start, real = inputs
        fresh = jnp.where(start, jnp.zeros_like(h), h)
        h = jnp.where(real, a * fresh + b, h)
        return h, h

    in_time = [jnp.moveaxis(x, -2, 0) for x in (a, b, *_marks(ids))]
    last, states = lax.scan(step, state, tuple(in_time))
    return last, jnp.moveaxis(states, 0, -2)


def _marks(segment_ids: SegmentIds) -> tuple[Array, Array]:
    """Where a document begins, and where there is no padding; ``[*B, T, 1]``."""
    start = segments.starts(segment_ids, segments.no_ids(segment_ids))
    return start[..., None], segments.is_real(segment_ids)[..., None]


class _Solution(NamedTuple):
    """All states, and what leaves at the end."""

    states: Inexact[Array, "*B T F"]
    last: Inexact[Array, "*B F"]


class _Implementation(Protocol):
    """Forwards, ``h_t = a_t h_{t-1} + b_t`` from ``h_{-1} = h``, with ``h_{T-1}`` leaving at the end.

    In reverse (its transpose), ``g_t = b_t + v_t`` and ``v_{t-1} = a_t g_t`` from ``v_{T-1} = h``, with ``v_{-1}``
    leaving.
    """

    def __call__(self, a: Array, b: Array, h: Array, *, reverse: bool) -> _Solution: ...


def _sequential(
    a: Inexact[Array, "*B T F"], b: Inexact[Array, "*B T F"], h: Inexact[Array, "*B F"], *, reverse: bool
) -> _Solution:
    """The loop's buffer begins as ``b`` and ends as the states; time is sliced where it is (axis -2)."""
    steps, axis = a.shape[-2], a.ndim - 2

    def at(x: Array, t: Any) -> Array:
        return lax.dynamic_index_in_dim(x, t, axis, keepdims=False, allow_negative_indices=False)

    def put(x: Array, h: Array, t: Any) -> Array:
        return lax.dynamic_update_index_in_dim(x, h, t, axis, allow_negative_indices=False)

    def forwards(t: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, states = carry
        h = _kept(at(a, t), h) + at(states, t)
        return h, put(states, h, t)

    def backwards(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        g, states = carry
        t = steps - 2 - i
        g = _kept(at(a, t + 1), g) + at(states, t)
        return g, put(states, g, t)

    if not reverse:
        h, states = lax.fori_loop(0, steps, forwards, (h, b))
        return _Solution(states, h)
    g = b[..., -1, :] + h
    g, states = lax.fori_loop(0, steps - 1, backwards, (g, put(b, g, steps - 1)))
    return _Solution(states, _kept(a[..., 0, :], g))


def _associative(
    a: Inexact[Array, "*B T F"], b: Inexact[Array, "*B T F"], h: Inexact[Array, "*B F"], *, reverse: bool
) -> _Solution:
    def after(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * then[0], _kept(then[0], first[1]) + then[1]

    if reverse:
        decays = jnp.concatenate([a[..., 1:, :], jnp.ones_like(a[..., :1, :])], axis=-2)
        driven = b.at[..., -1, :].add(h)
        states = lax.associative_scan(after, (decays, driven), reverse=True, axis=a.ndim - 2)[1]
        return _Solution(states, _kept(a[..., 0, :], states[..., 0, :]))
    driven = b.at[..., 0, :].add(_kept(a[..., 0, :], h))
    states = lax.associative_scan(after, (a, driven), axis=a.ndim - 2)[1]
    return _Solution(states, states[..., -1, :])


def _kept(a: Array, h: Array) -> Array:
    """``a ⊙ h``, where a zero forgets even what is infinite or NaN."""
    return jnp.where(a == 0, jnp.zeros_like(h), a * h)


IMPLEMENTATIONS: dict[str, _Implementation] = {"sequential": _sequential, "associative": _associative}


@functools.partial(jax.jit, static_argnames=("reverse", "implementation"))
def _solve(a: Array, b: Array, h: Array, *, reverse: bool, implementation: str) -> _Solution:
    return _Solution(*_solve_p.bind(a, b, h, reverse=reverse, implementation=implementation))


def _run(a: Array, b: Array, h: Array, *, reverse: bool, implementation: str) -> _Solution:
    return IMPLEMENTATIONS[implementation](a, b, h, reverse=reverse)


def _jvp(primals: tuple, tangents: tuple, **how: Any) -> tuple[_Solution, _Solution]:
    """What a tangent of ``a`` adds is a product with the states themselves: nothing else is kept for the way back."""
    a, b, h = primals
    d_a, d_b, d_h = tangents[0], *map(ad.instantiate_zeros, tangents[1:])
    out = _solve(a, b, h, **how)
    if type(d_a) is ad.Zero:
        return out, _solve(a, d_b, d_h, **how)
    if how["reverse"]:  # da_t g_t joins v_{t-1}
        d_v = d_a * out.states
        d_out = _solve(a, d_b + _shifted(d_v, -1), d_h, **how)
        return out, d_out._replace(last=d_out.last + d_v[..., 0, :])
    first = d_a[..., :1, :] * h[..., None, :]
    later = _shifted(_shifted(d_a, -1) * out.states, 1)
    return out, _solve(a, later.at[..., :1, :].add(first) + d_b, d_h, **how)


def _shifted(x: Inexact[Array, "*B T F"], by: int) -> Inexact[Array, "*B T F"]:
    """``x_{t - by}``, zeros at the end that is laid bare."""
    none = (0, 0, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), [*[none] * (x.ndim - 2), (by, -by, 0), none])


def _transpose(cotangents: Any, a: Array, b: Any, h: Any, *, reverse: bool, implementation: str) -> list:
    states, last = map(ad.instantiate_zeros, cotangents)
    back = _solve(a, states, last, reverse=not reverse, implementation=implementation)
    return [None, *(g if ad.is_undefined_primal(x) else None for g, x in zip(back, (b, h), strict=True))]


def _mapped(arguments: tuple, axes: tuple, **how: Any) -> tuple[_Solution, tuple[int, int]]:
    size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
    a, b, h = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arguments, axes, strict=True)
    )
    return _solve(a, b, h, **how), (0, 0)


def _shapes(a: Any, b: Any, h: Any, **how: Any) -> tuple[Any, Any]:
    return b, h


_solve_p = Primitive("linear_recurrence")
_solve_p.multiple_results = True
_solve_p.def_impl(_run)
_solve_p.def_abstract_eval(_shapes)
mlir.register_lowering(_solve_p, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_solve_p] = _jvp
ad.primitive_transposes[_solve_p] = _transpose
batching.primitive_batchers[_solve_p] = _mapped
