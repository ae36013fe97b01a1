"""Elementwise linear recurrence ``h_t = a_t ⊙ h_{t-1} + b_t``, real or complex.

The tangent of a linear recurrence is a linear recurrence with the same ``a``, so one rule serves every
implementation, forward and backward: ``dh_t = a_t ⊙ dh_{t-1} + (da_t ⊙ h_{t-1} + db_t)``.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.typing import Array, Inexact, SegmentIds


def linear_recurrence(
    a: Inexact[Array, "*B T F"],
    b: Inexact[Array, "*B T F"],
    state: Inexact[Array, "*B F"],
    *,
    segment_ids: SegmentIds | None = None,
    implementation: str = "auto",
) -> tuple[Inexact[Array, "*B F"], Inexact[Array, "*B T F"]]:
    """Runs ``h_t = a_t ⊙ h_{t-1} + b_t`` along time; returns the last state and all ``h_t``.

    Args:
      a: the decay; any value (products of decays are formed, never quotients: zeros are safe).
      b: what is added.
      state: ``h`` before the first step. ``a``, ``b`` and ``state`` share one dtype.
      segment_ids: 0 is padding (the state stands still), a change of id begins again from zeros (the state is
        multiplied by 0: one that is infinite or NaN is not forgotten).
      implementation: ``"sequential"`` (a scan over time), ``"associative"`` (``jax.lax.associative_scan``: log T
        passes over everything; Blelloch 1990), ``"two-level"`` (chunks side by side, then a scan over the chunks'
        ends: √T steps twice) or ``"auto"``.

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
    a, b = _masked(a, b, segment_ids)
    if implementation == "auto":
        implementation = _chosen(a)
    hs = _solve(implementation, jnp.moveaxis(a, -2, 0), jnp.moveaxis(b, -2, 0), state)
    return (hs[-1] if hs.shape[0] else state), jnp.moveaxis(hs, 0, -2)


def linear_recurrence_reference(
    a: Inexact[Array, "*B T F"],
    b: Inexact[Array, "*B T F"],
    state: Inexact[Array, "*B F"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Inexact[Array, "*B F"], Inexact[Array, "*B T F"]]:
    """``linear_recurrence`` as it is written on paper, with the gradient JAX gives a scan."""
    a, b = _masked(a, b, segment_ids)
    hs = _sequential(jnp.moveaxis(a, -2, 0), jnp.moveaxis(b, -2, 0), state)
    return (hs[-1] if hs.shape[0] else state), jnp.moveaxis(hs, 0, -2)


def _masked(a: Array, b: Array, segment_ids: Array | None) -> tuple[Array, Array]:
    """A beginning forgets (a = 0), padding stands still (a = 1, b = 0)."""
    if segment_ids is None:
        return a, b
    start = segments.starts(segment_ids, segments.no_ids(segment_ids))[..., None]
    real = segments.is_real(segment_ids)[..., None]
    a = jnp.where(real, jnp.where(start, jnp.zeros_like(a), a), jnp.ones_like(a))
    return a, jnp.where(real, b, jnp.zeros_like(b))


def _sequential(a: Inexact[Array, "T *R"], b: Inexact[Array, "T *R"], h: Inexact[Array, "*R"]) -> Array:
    def body(h: Array, ab: tuple[Array, Array]) -> tuple[Array, Array]:
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(body, h, (a, b))[1]


def _associative(a: Inexact[Array, "T *R"], b: Inexact[Array, "T *R"], h: Inexact[Array, "*R"]) -> Array:
    if a.shape[0] == 0:
        return b

    def after(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * then[0], first[1] * then[0] + then[1]

    b = jnp.concatenate([(a[0] * h + b[0])[None], b[1:]])
    return lax.associative_scan(after, (a, b))[1]


def _two_level(a: Inexact[Array, "T *R"], b: Inexact[Array, "T *R"], h: Inexact[Array, "*R"]) -> Array:
    steps = a.shape[0]
    length = max(1, round(steps**0.5))
    chunks = -(-steps // length)
    padding = [(0, chunks * length - steps)] + [(0, 0)] * (a.ndim - 1)

    def by_chunk(z: Array) -> Array:
        return jnp.moveaxis(jnp.pad(z, padding).reshape(chunks, length, *z.shape[1:]), 1, 0)

    def inside(carry: tuple[Array, Array], ab: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        decay, local = carry
        carry = (ab[0] * decay, ab[0] * local + ab[1])
        return carry, carry

    ones = jnp.ones((chunks, *h.shape), h.dtype)
    (decay, end), (decays, locals_) = lax.scan(inside, (ones, jnp.zeros_like(ones)), (by_chunk(a), by_chunk(b)))
    ends = _sequential(decay, end, h)
    begins = jnp.concatenate([h[None], ends[:-1]])
    hs = jnp.moveaxis(locals_ + decays * begins[None], 0, 1)
    return hs.reshape(chunks * length, *h.shape)[:steps]


IMPLEMENTATIONS: dict[str, Callable] = {
    "sequential": _sequential,
    "associative": _associative,
    "two-level": _two_level,
}


def _chosen(a: Array) -> str:
    """On a CPU the plain scan has the least traffic (docs/performance.md); an accelerator has lanes to fill."""
    return "sequential" if jax.default_backend() == "cpu" else "associative"


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(implementation: str, a: Array, b: Array, h: Array) -> Array:
    return IMPLEMENTATIONS[implementation](a, b, h)


@_solve.defjvp
def _solve_jvp(implementation: str, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    a, b, h = primals
    d_a, d_b, d_h = tangents
    hs = _solve(implementation, a, b, h)
    before = jnp.concatenate([h[None], hs])[:-1]
    return hs, IMPLEMENTATIONS[implementation](a, d_a * before + d_b, d_h)
