"""The gradient of the parameters as the sum of its terms by lag: back-propagation through time, term by term."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.analysis.carry_vectors import (
    check_one_sequence,
    float_leaves,
    stable_norm,
    step_carries,
    with_float_leaves,
)
from jaxseq.typing import Array, Carry, Float, Int, Scalar

Apply: TypeAlias = Callable[[Any, Any, Any], tuple[Any, Any]]
"""A core as a pure function of its parameters: ``(params, carry, xs[T D]) -> (carry, ys[T F])``."""


class TermNorms(NamedTuple):
    """The terms of a gradient by lag, in four numbers each; norms are over all parameters together."""

    lags: Int[Array, " L"]
    norms: Float[Array, " L"]
    """``|term_k|``"""
    cosines: Float[Array, " L"]
    """The cosine between ``term_k`` and the full gradient; 0 where one of them is zero."""
    cumulative_norms: Float[Array, " L"]
    """``|term_0 + ... + term_k|``: the gradient of truncated back-propagation of depth k."""
    cumulative_cosine: Float[Array, " L"]
    """The cosine between ``term_0 + ... + term_k`` and the full gradient."""
    full_norm: Scalar
    """``|dL/dparams|``"""


def bptt_terms(
    apply: Apply,
    params: Any,
    carry: Carry,
    xs: Float[Array, "T D"],
    loss: Callable[[Any], Scalar],
    *,
    max_lag: int | None = None,
) -> Any:
    """The terms of ``dL/dparams`` by lag: ``params`` with a leading axis of lags 0 to T - 1 (or ``max_lag``).

    With ``L = loss(ys)`` and ``y_t, c_t`` from ``c_{t-1}`` and ``x_t``, the gradient is the sum over t and i <= t of
    ``dL/dy_t · d y_t/d c_i · d⁺c_i/d params``, where ``d⁺`` is the immediate derivative, of one step at a constant
    ``c_{i-1}`` (Werbos 1990; Pascanu et al. 2013, arXiv:1211.5063, eq. 3-5). Term k is the part with t - i = k: what an
    output receives from the use of the parameters k steps before it. All terms add up to ``jax.grad``; those to
    ``max_lag`` are the gradient of truncated back-propagation in which each output reaches back that many steps.

    The algorithm stores the T carries and the residuals of T single steps, and then, lag by lag, one cotangent of the
    carry for each position. One vjp of the T steps at once gives the term, summed over the positions, and the
    cotangents of the next lag. T lags cost T back-propagations. The result has T times the size of the parameters:
    ``bptt_term_norms`` does not store it.

    Example::

        core = jaxseq.cores.LSTM(8)
        carry = core.initial_carry(())
        params = core.init(jax.random.key(0), carry, xs)
        terms = bptt_terms(core.apply, params, carry, xs, lambda ys: (ys[-1] ** 2).sum())

    Args:
      apply: the core, ``core.apply``, for one sequence (no batch). It is called with one position at a time. Integer
        leaves of the carry are held constant.
      params: its parameters.
      carry: the carry before the first position.
      xs: the inputs.
      loss: a scalar function of the outputs ``ys[T F]``.
      max_lag: the largest lag, T - 1 by default.

    Raises:
      ValueError: ``xs`` is empty or not [T, D], the carry has batch dimensions, no float leaves or too little room for
        T positions, or ``max_lag`` is not in 0 to T - 1.
    """
    lags = _lags(apply, params, carry, xs, max_lag)
    term, begin = _pullback_by_lag(apply, params, carry, xs, loss)
    _, terms = lax.scan(lambda cotangents, _: term(cotangents), begin, lags)
    return terms


def bptt_term_norms(
    apply: Apply,
    params: Any,
    carry: Carry,
    xs: Float[Array, "T D"],
    loss: Callable[[Any], Scalar],
    *,
    max_lag: int | None = None,
) -> TermNorms:
    """Norms of ``bptt_terms``, and their cosines to the full gradient, in the memory of two gradients.

    The full gradient is that of ``jax.grad`` through ``apply`` of the whole sequence, whatever ``max_lag`` is. Takes
    and raises what ``bptt_terms`` does.
    """
    lags = _lags(apply, params, carry, xs, max_lag)
    full = jax.grad(lambda params: loss(apply(params, carry, xs)[1]))(params)
    full_norm = _norm(full)
    direction = _unit(full, full_norm)
    term, begin = _pullback_by_lag(apply, params, carry, xs, loss)

    def body(state: tuple, _: Any) -> tuple:
        cotangents, total = state
        cotangents, part = term(cotangents)
        total = jax.tree.map(jnp.add, total, part)
        norms = _norm(part), _norm(total)
        cosines = [_inner(_unit(a, norm), direction) for a, norm in zip((part, total), norms, strict=True)]
        return (cotangents, total), (norms[0], cosines[0], norms[1], cosines[1])

    found: tuple[Array, ...]
    _, found = lax.scan(body, (begin, jax.tree.map(jnp.zeros_like, params)), lags)
    return TermNorms(lags, *found, full_norm=full_norm)


def _pullback_by_lag(apply: Apply, params: Any, carry: Carry, xs: Array, loss: Callable) -> tuple[Callable, tuple]:
    """``term``, from the cotangents of one lag to those of the next and the gradient's term, and the first cotangents.

    The cotangents are those of each position's carry (its float leaves) and output: at lag 0 only of the outputs, at
    the other lags only of the carries.
    """
    before, _, ys = step_carries(partial(apply, params), carry, xs)

    def all_steps(params: Any, floats: list) -> tuple[list, Array]:
        def step(before: Carry, x: Float[Array, " D"]) -> tuple[list, Array]:
            after, y = apply(params, before, x[None])
            return float_leaves(after), y[0]

        return jax.vmap(step)(with_float_leaves(before, floats), xs)

    floats = float_leaves(before)
    _, pull = jax.vjp(all_steps, params, floats)

    def term(cotangents: tuple[list, Any]) -> tuple[tuple[list, Any], Any]:
        d_params, d_before = pull(cotangents)
        # The carry before position i is the one after position i - 1; nothing follows the last position.
        shifted = [jnp.concatenate([d[1:], jnp.zeros_like(d[:1])]) for d in d_before]
        return (shifted, jnp.zeros_like(ys)), d_params

    return term, ([jnp.zeros_like(f) for f in floats], jax.grad(loss)(ys))


def _lags(apply: Apply, params: Any, carry: Carry, xs: Array, max_lag: int | None) -> Int[Array, " L"]:
    check_one_sequence(partial(apply, params), carry, xs)
    last = len(xs) - 1 if max_lag is None else max_lag
    if not 0 <= last < len(xs):
        raise ValueError(f"max_lag={max_lag} must be in 0..{len(xs) - 1} for {len(xs)} positions")
    return jnp.arange(last + 1)


def _norm(tree: Any) -> Scalar:
    return stable_norm(jnp.stack([stable_norm(leaf) for leaf in jax.tree.leaves(tree)]))


def _unit(tree: Any, norm: Scalar) -> Any:
    """The tree as a vector of norm one; zeros if its norm is 0."""
    scale = jnp.where(norm > 0, norm, jnp.ones_like(norm))
    return jax.tree.map(lambda leaf: leaf / scale, tree)


def _inner(a: Any, b: Any) -> Scalar:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: (a * b).sum(), a, b))
