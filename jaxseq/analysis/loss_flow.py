"""The gradient of a loss at each position of the input and of the carry."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.analysis.carry_vectors import (
    CoreFunction,
    check_steps,
    float_leaves,
    stable_norm,
    step_carries,
    with_float_leaves,
)
from jaxseq.typing import Array, Carry, Float, Scalar


class LossFlow(NamedTuple):
    """Norms of a loss's gradient at each position: by the input, and by the carry after it (None: not asked for)."""

    inputs: Float[Array, "*B T"]
    carries: Float[Array, "*B T"] | None


def loss_flow(
    core: CoreFunction,
    carry: Carry,
    xs: Float[Array, "*B T D"],
    loss: Callable[[Array], Scalar],
    *,
    carries: bool = True,
    part: Callable[[Carry], Any] | None = None,
) -> LossFlow:
    """The norms ``|dL/dx_s|`` and ``|dL/dc_s|`` at each position s of the loss ``L = loss(ys)``.

    ``dL/dc_s`` is the total derivative by the carry that position s hands to position s + 1, through all later steps:
    ``dL/dc_{s-1} = (dc_s/dc_{s-1})^T dL/dc_s + (dy_s/dc_{s-1})^T dL/dy_s`` with ``dL/dc_T = 0``. The output y_s is
    computed before that carry is handed on and is no function of it: a loss of the last output alone reaches c_{T-1}
    first.

    The core reads one position at a time, forward with the T carries stored, then backward: O(T C) memory. For
    attention the carry is the cache, so that this takes T caches, and a cache with room for T positions;
    ``carries=False`` computes the inputs' norms by one ordinary backward pass over the whole sequence instead.

    Args:
        core: ``(carry, xs) -> (carry, ys)``, its parameters bound.
        carry: the first carry, with the batch dimensions of ``xs``; integer leaves are constants.
        xs: the inputs.
        loss: a scalar of the outputs ``[*B T F]``.
        carries: whether to compute the norms by the carries.
        part: of ``dL/dc_s`` (a pytree like the carry), what to take the norm of; ``core.hidden``: the hidden state.
            None: all float leaves.

    Raises:
        ValueError: inputs that are not ``[*B T D]`` with ``T >= 1``, a carry without float leaves or with a cache that
            does not hold T positions, or a loss that is not a scalar.

    Example::

        flow = loss_flow(partial(core.apply, variables), carry, xs, lambda ys: ys[..., -1, :].sum())
        flow.carries / flow.carries.max()
    """
    if jnp.ndim(xs) < 2 or not xs.shape[-2]:
        raise ValueError(f"inputs must be [*B T D] with T >= 1, not {jnp.shape(xs)}")
    if not carries:
        return LossFlow(stable_norm(jax.grad(lambda xs: _checked(loss)(core(carry, xs)[1]))(xs), -1), None)
    if not float_leaves(carry):
        raise ValueError("the carry has no floating-point leaves to differentiate by; carries=False does the inputs")
    check_steps(core, carry, xs)
    before, last, ys = step_carries(core, carry, xs)
    d_ys = jnp.moveaxis(jax.grad(_checked(loss))(ys), -2, 0)

    def step(d_after: list[Array], at: tuple[Carry, Array, Array]) -> tuple[list[Array], tuple[Array, Array]]:
        before, x, d_y = at

        def forward(leaves: list[Array], x: Array) -> tuple[list[Array], Array]:
            after, y = core(with_float_leaves(before, leaves), x[..., None, :])
            return float_leaves(after), y[..., 0, :]

        _, pullback = jax.vjp(forward, float_leaves(before), x)
        d_before, d_x = pullback((d_after, d_y))
        taken = d_after if part is None else jax.tree.leaves(part(with_float_leaves(before, d_after)))
        return d_before, (stable_norm(d_x, -1), _joint_norm(taken, x.ndim - 1))

    zeros = jax.tree.map(jnp.zeros_like, float_leaves(last))
    inputs = jnp.moveaxis(xs, -2, 0)
    by_input, by_carry = lax.scan(step, zeros, (before, inputs, d_ys), reverse=True)[1]
    return LossFlow(jnp.moveaxis(by_input, 0, -1), jnp.moveaxis(by_carry, 0, -1))


def _joint_norm(leaves: list[Array], batch_dims: int) -> Array:
    """The norm over all leaves together, for each index of the batch dimensions."""
    flat = [leaf.reshape(*leaf.shape[:batch_dims], -1) for leaf in leaves]
    norms = [stable_norm(leaf, -1) for leaf in flat if leaf.shape[-1]]
    wide = jnp.float64 if any(norm.dtype == jnp.float64 for norm in norms) else jnp.float32
    return stable_norm(jnp.stack([norm.astype(wide) for norm in norms]), 0)


def _checked(loss: Callable[[Array], Scalar]) -> Callable[[Array], Scalar]:
    """The loss, which must be a scalar."""

    def scalar(ys: Array) -> Scalar:
        value = loss(ys)
        if jnp.shape(value):
            raise ValueError(f"the loss must be a scalar, not of shape {jnp.shape(value)}")
        return value

    return scalar
