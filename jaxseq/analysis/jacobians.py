"""Jacobians of a core's carry and outputs, as matrices and as products with vectors."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.analysis.carry_vectors import (
    CoreFunction,
    carry_vector,
    check_one_sequence,
    pull_cotangents,
    push_tangents,
    step_carries,
)
from jaxseq.typing import Array, Carry, Float


def carry_jacobians(core: CoreFunction, carry: Carry, xs: Float[Array, "T D"]) -> Float[Array, "T C C"]:
    """The Jacobian of each step, ``J_t = d c_t / d c_{t-1}``, of the float leaves of the carry as a vector of size C.

    Their ordered product ``J_T ... J_2 J_1`` is the Jacobian of the last carry by the first. It takes C tangents a
    step and O(T C²) memory; use ``carry_jvp``, ``carry_vjp`` and ``carry_flow`` for a large carry.

    Args:
        core: ``(carry, xs) -> (carry, ys)``, its parameters bound.
        carry: the carry of one sequence; integer leaves are constants.
        xs: the inputs.

    Raises:
        ValueError: batch dimensions, a carry without float leaves, or a cache without room for T positions.

    Example::

        core = Elman(8)
        carry, xs = core.initial_carry(()), jnp.ones((5, 3))
        variables = core.init(jax.random.key(0), carry, xs)
        carry_jacobians(partial(core.apply, variables), carry, xs).shape  # (5, 8, 8)
    """
    check_one_sequence(core, carry, xs)
    vector = carry_vector(carry)
    basis = jnp.eye(vector.size, dtype=vector.dtype)

    def step(before: Carry, x: Array) -> tuple[Carry, Array]:
        return core(before, x[None])[0], push_tangents(core, before, x, basis).T

    return lax.scan(step, jax.tree.map(jnp.asarray, carry), xs)[1]


def output_jacobian(core: CoreFunction, carry: Carry, xs: Float[Array, "T D"]) -> Float[Array, "T F T D"]:
    """The Jacobian of the outputs by the inputs, ``d y_t / d x_s`` at ``[t, :, s, :]``; zero for ``s > t``.

    It takes ``T min(D, F)`` passes and O(T² D F) memory; ``receptive_field`` gives the norms for one t in O(T).

    Args:
        core: ``(carry, xs) -> (carry, ys)``, its parameters bound.
        carry: the carry of one sequence.
        xs: the inputs.

    Raises:
        ValueError: the inputs are not ``[T D]``.
    """
    if jnp.ndim(xs) != 2:
        raise ValueError(f"inputs of one sequence, [T D], are needed, not {jnp.shape(xs)}; use jax.vmap")

    def outputs(xs: Array) -> Array:
        return core(carry, xs)[1]

    narrow = xs.shape[-1] <= jax.eval_shape(outputs, xs).shape[-1]
    return (jax.jacfwd if narrow else jax.jacrev)(outputs)(xs)


def carry_jvp(
    core: CoreFunction, carry: Carry, xs: Float[Array, "T D"], tangents: Float[Array, "C K"]
) -> Float[Array, "C K"]:
    """``P V``: K tangents of the first carry, propagated to the last, with ``P = d c_T / d c_0``.

    One pass over the sequence, O(C K) memory; P is never made.

    Args:
        core: ``(carry, xs) -> (carry, ys)``, its parameters bound.
        carry: the carry of one sequence; integer leaves are constants.
        xs: the inputs.
        tangents: the columns of V.

    Raises:
        ValueError: as ``carry_jacobians``, or tangents that are not ``[C K]``.
    """
    check_one_sequence(core, carry, xs)
    _check_vectors("tangents", carry, tangents)

    def step(state: tuple[Carry, Array], x: Array) -> tuple[tuple[Carry, Array], None]:
        before, rows = state
        return (core(before, x[None])[0], push_tangents(core, before, x, rows)), None

    return lax.scan(step, (jax.tree.map(jnp.asarray, carry), tangents.T), xs)[0][1].T


def carry_vjp(
    core: CoreFunction, carry: Carry, xs: Float[Array, "T D"], cotangents: Float[Array, "C K"]
) -> Float[Array, "C K"]:
    """``P^T U``: K cotangents of the last carry, propagated to the first, with ``P = d c_T / d c_0``.

    A pass forward, which stores the T carries, and one backward: O(T C + C K) memory; P is never made.

    Args:
        core: ``(carry, xs) -> (carry, ys)``, its parameters bound.
        carry: the carry of one sequence; integer leaves are constants.
        xs: the inputs.
        cotangents: the columns of U.

    Raises:
        ValueError: as ``carry_jacobians``, or cotangents that are not ``[C K]``.
    """
    check_one_sequence(core, carry, xs)
    _check_vectors("cotangents", carry, cotangents)
    before, _, _ = step_carries(core, carry, xs)

    def step(rows: Array, at: tuple[Carry, Array]) -> tuple[Array, None]:
        return pull_cotangents(core, *at, rows), None

    return lax.scan(step, cotangents.T, (before, xs), reverse=True)[0].T


def _check_vectors(name: str, carry: Carry, vectors: Array) -> None:
    """Raises ValueError unless the array holds vectors of the carry as its columns."""
    vector = carry_vector(carry)
    if jnp.ndim(vectors) != 2 or vectors.shape[0] != vector.size or vectors.dtype != vector.dtype:
        raise ValueError(f"{name} must be {vector.dtype}[C={vector.size}, K], not {vectors.dtype}{vectors.shape}")
