"""Gradient accumulation: the mean over all items of several steps, not a mean of the steps' means."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxseq.training.widening import norm_dtype
from jaxseq.typing import Array, Bool, Float, Int, PyTree, Scalar


class Accumulation(NamedTuple):
    """The sums since the last update; the optimizer that gets their quotient has the state ``inner``."""

    mini_step: Int[Array, ""]  # steps in the sums
    weight: Float[Array, ""]  # sum of the steps' weights
    gradients: PyTree  # sum of weight * gradient, in the dtypes of the (widened) parameters
    inner: PyTree


def accumulate(optimizer: optax.GradientTransformation, steps: int) -> optax.GradientTransformationExtraArgs:
    """One update of ``optimizer`` for every ``steps`` gradients, each the mean over ``weight`` items (default 1).

        gradient = sum_i weight_i gradient_i / sum_i weight_i

    This is the gradient of the mean over all items, for any division of the items among the steps, so that clipping and
    its statistics are those of the joint batch. The updates of the other steps are zero. If the sum of the weights is
    0, the gradient is zero.

    ``optax.MultiSteps`` instead averages the means with equal weights.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> Accumulation:
        zero = jnp.zeros((), norm_dtype(params))
        return Accumulation(jnp.zeros((), jnp.int32), zero, jax.tree.map(jnp.zeros_like, params), inner.init(params))

    def update(
        gradients: PyTree, state: Accumulation, params: PyTree = None, *, weight: Scalar | float = 1.0, **extra: Any
    ) -> tuple[PyTree, Accumulation]:
        weight = jnp.asarray(weight, state.weight.dtype)
        total = state.weight + weight
        sums = jax.tree.map(lambda s, g: s + weight.astype(s.dtype) * g, state.gradients, gradients)

        def finish() -> tuple[PyTree, Accumulation]:
            divisor = jnp.where(total > 0, total, jnp.ones_like(total))
            mean = jax.tree.map(lambda s: s / divisor.astype(s.dtype), sums)
            updates, new = inner.update(mean, state.inner, params, **extra)
            zeros = jax.tree.map(jnp.zeros_like, sums)
            return updates, Accumulation(jnp.zeros_like(state.mini_step), jnp.zeros_like(total), zeros, new)

        def wait() -> tuple[PyTree, Accumulation]:
            zeros = jax.tree.map(jnp.zeros_like, sums)
            return zeros, Accumulation(state.mini_step + 1, total, sums, state.inner)

        return jax.lax.cond(state.mini_step + 1 >= steps, finish, wait)

    return optax.GradientTransformationExtraArgs(init, update)


def has_updated(opt_state: PyTree) -> Bool[Array, ""]:
    """Whether the step that made this state updated the parameters; False while gradients are accumulated.

    It recognises the states of :func:`accumulate` and of ``optax.MultiSteps``; with other optimizers every step is an
    update.
    """
    kinds = (Accumulation, optax.MultiStepsState)
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    waiting = [jnp.asarray(node.mini_step) != 0 for node in nodes if isinstance(node, kinds)]
    return ~jnp.any(jnp.stack(waiting)) if waiting else jnp.ones((), bool)
