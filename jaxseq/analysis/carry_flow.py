"""Norms and singular values of the Jacobian of the last carry by earlier ones, against lag."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.analysis.carry_vectors import (
    CoreFunction,
    carry_vector,
    check_one_sequence,
    pull_cotangents,
    push_tangents,
    stable_norm,
    step_carries,
)
from jaxseq.typing import Array, Carry, Float, Int, Key

EXACT_SIZE = 128
"""The largest carry whose Jacobians are made unless ``probes`` are given."""

DEFAULT_PROBES = 16
OVERSAMPLING = 8
ITERATED_STEPS = 128
"""A lag has ``ITERATED_STEPS / lag`` power iterations, in 1..8: spectra are flat at short lags, which cost little."""


class CarryFlow(NamedTuple):
    """``P = d c_T / d c_{T-lag}`` at each lag: its Frobenius norm and its largest singular values, descending."""

    lags: Int[Array, " L"]
    norms: Float[Array, " L"]
    singular_values: Float[Array, "L K"]


def carry_flow(
    core: CoreFunction,
    carry: Carry,
    xs: Float[Array, "T D"],
    *,
    lags: Sequence[int] | None = None,
    singular_values: int = 1,
    probes: int | None = None,
    key: Key[Array, ""] | None = None,
) -> CarryFlow:
    """Norms and singular values of ``P_lag = d c_T / d c_{T-lag} = J_T ... J_{T-lag+1}``, against lag.

    Gradients vanish where the norms fall with lag, and explode where they grow. For a carry of at most 128 numbers the
    product of all C rows is propagated backwards, and the results are exact. For a larger one no matrix is made:

    - one backward pass carries random cotangents to every lag;
    - for each lag, a randomised range finder with power iterations (8 at short lags, 1 from lag 128 on) and 8 more
      vectors than singular values (Halko et al. 2011, arXiv:0909.4061, algorithms 4.4 and 5.1) finds the leading right
      singular subspace Q through products with P and P^T; the singular values are those of ``P Q``, never above the
      true ones;
    - ``|P|_F² = |P Q|_F² + E |(I - Q Q^T) P^T v|²`` with v of independent normal numbers: Hutchinson's estimate for
      what Q leaves (Hutch++, Meyer et al. 2021, arXiv:2010.09649). With ``singular_values=0`` it is Hutchinson's alone,
      ``E |P^T v|²``, for one backward pass.

    Memory is O(T C + L (K + probes) C). The time is that of one pass and, with singular values, of at least
    three passes over the sum of the lags. In float32 a derivative below 1e-38 is zero; use float64 to follow it
    further.

    Args:
        core: ``(carry, xs) -> (carry, ys)``, its parameters bound.
        carry: the carry of one sequence before ``xs``; integer leaves are constants.
        xs: the inputs, whose last carry is differentiated.
        lags: in 0..T, in any order; None: 0..T thinned to about 32, geometrically spaced.
        singular_values: how many, K.
        probes: the number of random cotangents for the norm; None: exact up to C = 128, else 16. A number of at least C
            is exact.
        key: of the random numbers; None: ``jax.random.key(0)``.

    Raises:
        ValueError: batch dimensions, a carry without float leaves, a cache without room for T positions, lags outside
            0..T, ``singular_values`` not in 0..C, or ``probes < 1``.

    Example::

        flow = carry_flow(partial(core.apply, variables), core.initial_carry(()), xs, singular_values=2)
        flow.lags, flow.norms, flow.singular_values
    """
    check_one_sequence(core, carry, xs)
    time, size = xs.shape[0], carry_vector(carry).size
    chosen = default_lags(time) if lags is None else [int(lag) for lag in lags]
    if not chosen or min(chosen) < 0 or max(chosen) > time:
        raise ValueError(f"lags={chosen} must be in 0..{time}, at least one")
    if not 0 <= singular_values <= size:
        raise ValueError(f"singular_values={singular_values} must be in 0..{size}, the size of the carry")
    if probes is not None and probes < 1:
        raise ValueError(f"probes={probes} must be at least 1")
    before, last, _ = step_carries(core, carry, xs)
    dtype = carry_vector(last).dtype
    number = (size if size <= EXACT_SIZE else DEFAULT_PROBES) if probes is None else probes
    if number >= size:
        products = _pulled(core, before, xs, jnp.eye(size, dtype=dtype), chosen)
        spectra = _spectra(products, singular_values)
        return CarryFlow(jnp.asarray(chosen, jnp.int32), stable_norm(products, (-2, -1)), spectra)
    rank = min(singular_values + OVERSAMPLING, size) if singular_values else 0
    key = jax.random.key(0) if key is None else key
    pulled = _pulled(core, before, xs, jax.random.normal(key, (rank + number, size), dtype), chosen)
    sketches, rest = pulled[:, :rank], pulled[:, rank:]
    images = jnp.zeros((len(chosen), 0, size), dtype)
    if rank:
        bases, images = _subspaces(core, before, xs, sketches, chosen)
        rest = rest - jnp.einsum("lpr,lrc->lpc", jnp.einsum("lpc,lrc->lpr", rest, bases), bases)
    left = stable_norm(rest, (-2, -1)) / np.sqrt(number).astype(dtype)
    norms = stable_norm(jnp.stack([stable_norm(images, (-2, -1)), left]), 0)
    return CarryFlow(jnp.asarray(chosen, jnp.int32), norms, _spectra(images, singular_values))


def default_lags(time: int, count: int = 32) -> list[int]:
    """0, then at most ``count`` lags up to ``time``, spaced geometrically."""
    return [0, *np.unique(np.geomspace(1, time, count).round().astype(int)).tolist()]


def norm_bound(
    R: Float[Array, "F F"] | Float[np.ndarray, "F F"], gamma: float, lags: Sequence[int] | Int[Array, " L"]
) -> Float[Array, " L"]:
    """``(gamma sigma_max(R))^lag``: no singular value of ``d h_T / d h_{T-lag}`` is above it.

    For ``h_t = phi(x_t W + h_{t-1} R)`` with ``|phi'| <= gamma`` (tanh, relu: 1; sigmoid: 1/4) each step's Jacobian is
    at most ``gamma sigma_max(R)``. So ``sigma_max < 1 / gamma`` suffices for gradients to vanish; ``sigma_max > 1 /
    gamma`` is necessary for them to explode, and does not suffice (Pascanu et al. 2013, arXiv:1211.5063).

    Args:
        R: the recurrent matrix; of a core with one head, ``variables["params"]["recurrent"][0, :, 0]``.
        gamma: the bound of ``|phi'|``.
        lags: the exponents.

    Raises:
        ValueError: R is no square matrix, or ``gamma`` is negative.
    """
    matrix = jnp.asarray(R)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or gamma < 0:
        raise ValueError(f"a square matrix R and gamma >= 0 are needed, not R{matrix.shape} and gamma={gamma}")
    largest = jnp.linalg.norm(matrix, 2)
    return (largest * gamma) ** jnp.asarray(lags, largest.dtype)


def _pulled(core: CoreFunction, before: Carry, xs: Array, cotangents: Float[Array, "K C"], lags: list[int]) -> Array:
    """``U P_lag`` for each lag, ``[L K C]``, for the cotangents U of the last carry as rows."""
    time, distinct = xs.shape[0], sorted(set(lags))
    slots = np.full(time, len(distinct), np.int32)  # a slot outside the buffer is not written
    slots[[time - lag for lag in distinct if lag]] = [slot for slot, lag in enumerate(distinct) if lag]
    buffer = jnp.zeros((len(distinct), *cotangents.shape), cotangents.dtype)
    if distinct[0] == 0:
        buffer = buffer.at[0].set(cotangents)

    def step(state: tuple[Array, Array], at: tuple[Carry, Array, Array]) -> tuple[tuple[Array, Array], None]:
        (rows, buffer), (before, x, slot) = state, at
        rows = pull_cotangents(core, before, x, rows)
        return (rows, buffer.at[slot].set(rows, mode="drop")), None

    first = time - distinct[-1]
    at = jax.tree.map(lambda leaf: leaf[first:], (before, xs, jnp.asarray(slots)))
    (_, buffer), _ = lax.scan(step, (cotangents, buffer), at, reverse=True)
    return buffer[np.searchsorted(distinct, lags)]


def _subspaces(
    core: CoreFunction, before: Carry, xs: Array, sketches: Float[Array, "L K C"], lags: list[int]
) -> tuple[Array, Array]:
    """Orthonormal rows Q that span the leading right singular vectors of each P, and ``Q P^T``."""
    time = xs.shape[0]

    def at(index: Array) -> tuple[Carry, Array]:
        return jax.tree.map(lambda leaf: leaf[index], before), xs[index]

    def improve(given: tuple[Array, Array]) -> tuple[Array, Array]:
        sketch, lag = given

        def push(rows: Array) -> Array:
            return lax.fori_loop(time - lag, time, lambda t, rows: push_tangents(core, *at(t), rows), rows)

        def pull(rows: Array) -> Array:
            return lax.fori_loop(0, lag, lambda i, rows: pull_cotangents(core, *at(time - 1 - i), rows), rows)

        count = jnp.clip(ITERATED_STEPS // jnp.maximum(lag, 1), 1, 8)
        iterate = lambda _, basis: _orthonormal(pull(_orthonormal(push(basis))))  # noqa: E731
        basis = lax.fori_loop(0, count, iterate, _orthonormal(sketch))
        return basis, push(basis)

    return lax.map(improve, (sketches, jnp.asarray(lags, jnp.int32)))


def _orthonormal(rows: Float[Array, "K C"]) -> Float[Array, "K C"]:
    """Rows that are orthonormal and span the given ones; those of a tiny norm are scaled first."""
    largest = jnp.max(jnp.abs(rows))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    return jnp.linalg.qr((rows / scale).T)[0].T


def _spectra(matrices: Float[Array, "L K C"], count: int) -> Float[Array, "L count"]:
    """The largest singular values of each matrix."""
    if not count:
        return jnp.zeros((matrices.shape[0], 0), matrices.dtype)
    return lax.map(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False)[:count], matrices)
