"""How the cell state of an LSTM passes on its gradient: the terms of one step, and the paths through several.

The total derivative of ``c_t`` by ``c_{t-1}`` has ``h_{t-1} = o_{t-1} ⊙ tanh(c_{t-1})`` follow c, with ``o_{t-1}`` held
constant. Through h it reaches all gates, so that it is four terms, of which only the first is the forget path.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import block_diag

from jaxseq.analysis.carry_vectors import stable_norm
from jaxseq.ops.recurrence.cells import LSTMState, sigmoid
from jaxseq.typing import Array, Float, Int


class LSTMStepTerms(NamedTuple):
    """The terms of ``dc_t/dc_{t-1}``, a matrix a step: rows are units of ``c_t``, columns units of ``c_{t-1}``."""

    direct: Float[Array, "*T F F"]
    """``diag(f_t)``: the forget path."""
    forget_gate: Float[Array, "*T F F"]
    """``diag(c_{t-1} σ'(z_f)) R_fᵀ diag(o_{t-1} tanh'(c_{t-1}))``"""
    input_gate: Float[Array, "*T F F"]
    """``diag(g_t σ'(z_i)) R_iᵀ diag(o_{t-1} tanh'(c_{t-1}))``"""
    candidate: Float[Array, "*T F F"]
    """``diag(i_t tanh'(z_g)) R_gᵀ diag(o_{t-1} tanh'(c_{t-1}))``"""

    @property
    def total(self) -> Float[Array, "*T F F"]:
        """The sum of the terms, ``dc_t/dc_{t-1}``."""
        return self.direct + self.forget_gate + self.input_gate + self.candidate


class LSTMPathTerms(NamedTuple):
    """One value for each path, named by what the signal passes on its first step from ``c_s``."""

    direct: Array
    """``f_{s+1} ⊙ c_s``"""
    forget_gate: Array
    """``h_s``, then the forget gate"""
    input_gate: Array
    """``h_s``, then the input gate"""
    candidate: Array
    """``h_s``, then the candidate g"""
    output_gate: Array
    """``h_s``, then the output gate: it changes ``h_{s+1}`` only, so that it reaches c one step later."""


class LSTMPaths(NamedTuple):
    """``dc_T/dc_{T-k}`` for each lag k; norms are Frobenius norms."""

    lags: Int[Array, " L"]
    jacobians: Float[Array, "L F F"]
    """The exact derivative, rows units of ``c_T``."""
    paths: LSTMPathTerms
    """Its parts ``[L F F]``, which add up to it."""
    norms: Float[Array, " L"]
    """The norm of the exact derivative."""
    path_norms: LSTMPathTerms
    """The norm of each part, ``[L]``."""
    forget_norms: Float[Array, " L"]
    """The norm of ``diag(f_T ⊙ ... ⊙ f_{T-k+1})``: the direct path at every step."""
    product_errors: Float[Array, " L"]
    """``|P - J| / |J|`` for the exact derivative J and the product P of the four-term matrices of the k steps."""


def lstm_step_terms(params: Mapping[str, Array], state: LSTMState, xs: Float[Array, "T D"]) -> LSTMStepTerms:
    """The four terms of ``dc_t/dc_{t-1}`` at each position, ``[T F F]``, with ``o_{t-1}`` held constant.

    They add up to the derivative by autodiff of one step from ``(o_{t-1} ⊙ tanh(c_{t-1}), c_{t-1})``. Before the first
    position, o is ``h / tanh(c)`` of the given state; where c is 0 (an initial state of zeros), h does not follow c,
    and the terms through h are zero.

    Args:
      params: ``kernel``, ``bias`` and ``recurrent`` of ``jaxseq.cores.LSTM``, with any number of heads.
      state: the state before the first position, ``[F]`` each.
      xs: the inputs of one sequence.

    Raises:
      ValueError: other parameters (peepholes, a projection), or shapes that do not fit.
    """
    steps, R = _steps(params, state, xs)
    return jax.vmap(lambda step: _step_terms(step, R))(steps)


def lstm_paths(
    params: Mapping[str, Array], state: LSTMState, xs: Float[Array, "T D"], *, lags: Sequence[int]
) -> LSTMPaths:
    """The derivative of the last cell state by earlier ones, exact, and split by the path of the first step.

    ``dc_T/dc_s = [0 I] J_T ... J_{s+1} [diag(o_s tanh'(c_s)); I]`` with the Jacobians ``J_t`` of a step from
    ``(h, c)`` to ``(h, c)``. The product of the four-term matrices of ``lstm_step_terms`` is not this derivative beyond
    one step: each of them holds the output gate before it constant, and so leaves out the paths
    ``c_s -> h_s -> o_{s+1} -> h_{s+1}``. ``product_errors`` measures what that leaves out.

    Needs ``O(L F²)`` memory beside the T states; time ``O(T F³)`` to the largest lag.

    Example::

        core = jaxseq.cores.LSTM(8)
        carry = core.initial_carry(())
        params = core.init(jax.random.key(0), carry, xs)["params"]
        found = lstm_paths(params, carry.state, xs, lags=[1, 2, 4, 8])

    Args:
      params, state, xs: as for ``lstm_step_terms``.
      lags: values of k, in 1 to T.

    Raises:
      ValueError: a lag out of range, and what ``lstm_step_terms`` raises.
    """
    steps, R = _steps(params, state, xs)
    wanted = np.asarray(lags, np.int64)
    if wanted.ndim != 1 or not wanted.size or wanted.min() < 1 or wanted.max() > len(xs):
        raise ValueError(f"lags={list(lags)} must be one or more numbers in 1..{len(xs)}")
    features, dtype = state.c.shape[-1], state.c.dtype
    found = jnp.zeros((len(wanted), features, features), dtype)

    def body(carry: tuple, inputs: tuple) -> tuple:
        by_h, by_c, product, forget, stored = carry  # dc_T/dh_t, dc_T/dc_t at constant h_t, and the two products
        lag, step = inputs
        terms = _step_terms(step, R)
        exact = by_h * step.follow[None] + by_c  # dc_T/dc_t, h_t following c_t
        through_output = by_h @ (step.output_slope[:, None] * R.o)
        parts = [*(exact @ term for term in terms), through_output * step.follow_before[None]]
        product, forget = product @ terms.total, forget * step.f
        at = jnp.where(jnp.asarray(wanted) == lag, jnp.arange(len(wanted)), len(wanted))
        values = *parts, functools.reduce(jnp.add, parts), product, forget
        stored = tuple(s.at[at].set(v[None], mode="drop") for s, v in zip(stored, values, strict=True))
        return (exact @ _h_to_c(step, R) + through_output, exact * step.f[None], product, forget, stored), None

    identity = jnp.eye(features, dtype=dtype)
    stored = (*[found] * 7, found[:, 0])
    begin: Any = jnp.zeros_like(identity), identity, identity, jnp.ones_like(state.c), stored
    largest = int(wanted.max())
    order = jax.tree.map(lambda a: a[::-1][:largest], steps)
    (*_, stored), _ = lax.scan(body, begin, (jnp.arange(1, largest + 1), order))
    *parts, exact, product, forget = stored
    paths, norms = LSTMPathTerms(*parts), stable_norm(exact, (-2, -1))
    return LSTMPaths(
        jnp.asarray(wanted, jnp.int32),
        exact,
        paths,
        norms,
        jax.tree.map(lambda path: stable_norm(path, (-2, -1)), paths),
        stable_norm(forget, -1),
        stable_norm(product - exact, (-2, -1)) / norms,
    )


class _Steps(NamedTuple):
    """The factors of the Jacobians of each step, ``[T F]`` each: slopes of ``c_t`` and ``h_t`` by the gates' sums."""

    f: Array
    slope_i: Array
    slope_f: Array
    slope_g: Array
    output_slope: Array
    """Of ``h_t`` by the output gate's sum."""
    follow: Array
    """``o_t tanh'(c_t)``: how ``h_t`` follows ``c_t``."""
    follow_before: Array
    """The same of the state before the step."""


class _Recurrent(NamedTuple):
    """The transposed recurrent matrix of each gate, ``[F F]``: rows are units of the gate, columns units of h."""

    i: Array
    f: Array
    g: Array
    o: Array


def _step_terms(step: _Steps, R: _Recurrent) -> LSTMStepTerms:
    """The terms of one step, ``[F F]`` each."""
    follow = step.follow_before[None]
    return LSTMStepTerms(
        jnp.diag(step.f),
        step.slope_f[:, None] * R.f * follow,
        step.slope_i[:, None] * R.i * follow,
        step.slope_g[:, None] * R.g * follow,
    )


def _h_to_c(step: _Steps, R: _Recurrent) -> Float[Array, "F F"]:
    """``d c_t / d h_{t-1}`` at constant ``c_{t-1}``."""
    return step.slope_f[:, None] * R.f + step.slope_i[:, None] * R.i + step.slope_g[:, None] * R.g


def _steps(params: Mapping[str, Array], state: LSTMState, xs: Float[Array, "T D"]) -> tuple[_Steps, _Recurrent]:
    """Runs the LSTM and returns its slopes and matrices."""
    if set(params) != {"kernel", "bias", "recurrent"}:
        raise ValueError(f"params must be kernel, bias and recurrent, not {', '.join(sorted(params))}")
    kernel, bias, recurrent = params["kernel"], params["bias"], params["recurrent"]
    features = state.c.shape[-1]
    heads, size, gates, out = recurrent.shape
    if state.h.shape != (features,) or gates != 4 or (heads * size, size) != (features, out):
        raise ValueError(
            f"recurrent of shape {recurrent.shape} ([N, H, 4, H], F = N * H) does not fit a state h {state.h.shape}, "
            f"c {state.c.shape} ([F])"
        )
    if xs.ndim != 2 or not len(xs) or kernel.shape != (xs.shape[-1], 4 * features):
        raise ValueError(f"xs of shape {xs.shape} ([T, D], T >= 1) does not fit a kernel of shape {kernel.shape}")
    R = _Recurrent(*(block_diag(*recurrent[:, :, k]).T for k in range(4)))

    def step(carry: tuple, x: Float[Array, " D"]) -> tuple:
        h, c, follow_before = carry
        z = jnp.split(x @ kernel + bias, 4)
        z_i, z_f, z_g, z_o = (a + matrix @ h for a, matrix in zip(z, R, strict=True))
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), jnp.tanh(z_g), sigmoid(z_o)
        c_t = f * c + i * g
        tanh_c = jnp.tanh(c_t)
        follow = o * (1 - tanh_c * tanh_c)
        slopes = g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)
        return (o * tanh_c, c_t, follow), _Steps(f, *slopes, follow, follow_before)

    tanh_c = jnp.tanh(state.c)
    o = jnp.where(
        state.c == 0, jnp.zeros_like(tanh_c), state.h / jnp.where(state.c == 0, jnp.ones_like(tanh_c), tanh_c)
    )
    steps: _Steps = lax.scan(step, (state.h, state.c, o * (1 - tanh_c * tanh_c)), xs)[1]
    return steps, R
