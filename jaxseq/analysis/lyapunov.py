"""Lyapunov exponents of any step function, recurrent core or dynamical system."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.analysis.carry_vectors import CoreFunction, carry_vector, with_carry_vector
from jaxseq.typing import Array, Carry, Float, Scalar

Step = Callable[[Any, Any], Any]
"""``(state, x) -> state``."""


class LyapunovSpectrum(NamedTuple):
    """Lyapunov exponents per unit of time, the largest first; the running estimate after each round; the dimension.

    ``kaplan_yorke_dimension`` is NaN if fewer exponents were computed than it needs.
    """

    exponents: Float[Array, " K"]
    history: Float[Array, "R K"]
    kaplan_yorke_dimension: Scalar


def lyapunov_exponents(
    step: Step,
    state: Any,
    inputs: Any,
    *,
    count: int | None = None,
    warmup: int = 0,
    every: int = 1,
    time_step: float = 1.0,
) -> LyapunovSpectrum:
    """The largest Lyapunov exponents along a trajectory: mean rates at which orthogonal small volumes grow.

    Orthonormal tangents Q are carried along by the derivative of the step, and made orthonormal again every few steps
    (Benettin et al. 1980; for recurrent networks Engelken et al. 2023, arXiv:2006.02427):

        Q_n R_n = J_n Q_{n-1}        lambda_i = (1 / (N every time_step)) sum_n log |(R_n)_ii|

    with J_n the Jacobian of ``every`` steps. The Jacobian is never made: the cost is K tangents a step and a QR
    factorisation of ``[C K]`` a round. Exponents above 0 mean chaos and exploding gradients, below 0 vanishing ones,
    and -inf a direction that a step erases. The Kaplan-Yorke dimension is
    ``k + sum_{i <= k} lambda_i / |lambda_{k+1}|`` with k the largest number of exponents whose sum is not negative.

    Args:
        step: ``(state, x) -> state``; ``core_step`` makes one of a core.
        state: the first state of one trajectory, any pytree; integer leaves are constants.
        inputs: the x of each step, a pytree of arrays of the same leading length. An autonomous system ignores its x:
            give any array of as many elements as steps, ``jnp.zeros(steps)``.
        count: how many exponents K; None: all C.
        warmup: steps at the start whose growth is not counted, while the tangents turn to their directions.
        every: steps between factorisations; more is faster, and too many let the tangents become parallel.
        time_step: the time that one step takes.

    Raises:
        ValueError: no float leaves in the state, ``count`` not in 1..C, or ``warmup`` and the steps after it that are
            not multiples of ``every``, with at least one round after the warmup; or a ``time_step`` that is not
            positive.

    Example::

        xs = jax.random.normal(jax.random.key(1), (1000, 3))
        spectrum = lyapunov_exponents(core_step(partial(core.apply, variables)), carry, xs, warmup=200)
    """
    vector = carry_vector(state)
    count = vector.size if count is None else count
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"inputs must be arrays of one leading length, the number of steps, not {sorted(lengths)}")
    ((steps,),) = lengths
    if not 1 <= count <= vector.size:
        raise ValueError(f"count={count} must be in 1..{vector.size}, the size of the state")
    if every < 1 or warmup < 0 or warmup % every or steps % every or steps <= warmup:
        raise ValueError(f"warmup={warmup} and {steps} steps must be multiples of every={every}, and more than warmup")
    if not time_step > 0:
        raise ValueError(f"time_step={time_step} must be positive")

    def advance(at: tuple[Any, Array], x: Any) -> tuple[tuple[Any, Array], None]:
        state, rows = at
        vector = carry_vector(state)

        def moved(vector: Array) -> Array:
            return carry_vector(step(with_carry_vector(state, vector), x))

        rows = jax.vmap(lambda tangent: jax.jvp(moved, (vector,), (tangent,))[1])(rows)
        return (step(state, x), rows), None

    def turn(at: tuple[Any, Array], xs: Any) -> tuple[tuple[Any, Array], Array]:
        state, rows = lax.scan(advance, at, xs)[0]
        basis, triangle = jnp.linalg.qr(rows.T)
        return (state, basis.T), jnp.log(jnp.abs(jnp.diagonal(triangle)))

    first = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (vector.size, count), vector.dtype))[0]
    rounds = jax.tree.map(lambda leaf: leaf.reshape(steps // every, every, *leaf.shape[1:]), inputs)
    growth = lax.scan(turn, (jax.tree.map(jnp.asarray, state), first.T), rounds)[1][warmup // every :]
    time = time_step * every * jnp.arange(1, growth.shape[0] + 1, dtype=vector.dtype)
    history = jnp.cumsum(growth, 0) / time[:, None]
    history = history[:, jnp.argsort(-history[-1])]
    return LyapunovSpectrum(history[-1], history, _kaplan_yorke(history[-1], vector.size))


def core_step(core: CoreFunction) -> Step:
    """A core as a step ``(carry, x[D]) -> carry``."""

    def step(carry: Carry, x: Float[Array, " D"]) -> Carry:
        return core(carry, x[None])[0]

    return step


def _kaplan_yorke(exponents: Float[Array, " K"], size: int) -> Scalar:
    """The dimension from exponents in descending order; NaN if the sum of fewer than all stays positive."""
    sums = jnp.cumsum(exponents)
    whole = jnp.sum((sums >= 0).astype(jnp.int32))
    count = exponents.shape[0]
    last = jnp.minimum(whole, count - 1)
    before = jnp.where(whole > 0, sums[jnp.maximum(whole - 1, 0)], jnp.zeros_like(sums[0]))
    dimension = whole.astype(sums.dtype) + before / jnp.abs(exponents[last])
    full = jnp.asarray(float(size) if count == size else jnp.nan, sums.dtype)
    return jnp.where(whole == count, full, dimension)
