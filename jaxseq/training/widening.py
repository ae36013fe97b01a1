"""The arithmetic of an optimizer: gradients, parameters and moments in at least float32, under standard promotion."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, DType, PyTree, Scalar


def widen(tree: PyTree) -> PyTree:
    """The tree with its 16-bit leaves in float32; wider ones are unchanged."""
    return jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)), tree)


def with_widening(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer with gradients and parameters in at least float32, so that its moments and updates are too.

    In float16 a square of 300 is infinite, and an eps of 1e-8 is 0. The updates are not cast back:
    :func:`apply_updates` rounds their sum with the parameters once. The optimizer runs under JAX's standard dtype
    promotion, because optax combines counts and rates without casts.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> PyTree:
        with jax.numpy_dtype_promotion("standard"):
            return inner.init(widen(params))

    def update(gradients: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(widen(gradients), state, widen(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """``params + updates``, added in at least float32 and rounded once to the dtypes of the parameters."""
    with jax.numpy_dtype_promotion("standard"):
        new = optax.apply_updates(widen(params), updates)
    return jax.tree.map(lambda x, p: x.astype(p.dtype), new, params)


def norm_dtype(tree: PyTree) -> DType:
    """The real dtype of sums over the tree: at least float32, float64 if any leaf is."""
    dtypes = [jnp.finfo(at_least_float32(x.dtype)).dtype for x in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def global_norm(tree: PyTree) -> Scalar:
    """``sqrt(sum of squares)`` over all leaves, in at least float32."""
    dtype = norm_dtype(tree)
    squares = [jnp.sum(jnp.square(jnp.abs(x).astype(dtype))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), dtype)))


def any_nan(tree: PyTree) -> Bool[Array, ""]:
    """Whether an entry of a leaf of floats is NaN; infinities may be meant."""
    each = [jnp.any(jnp.isnan(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.any(jnp.stack(each)) if each else jnp.zeros((), bool)


def stays_finite(before: PyTree, after: PyTree) -> Bool[Array, ""]:
    """Whether no entry of a leaf of floats that was finite is infinite or NaN now; one that was not may stay so."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    floats = [(x, y) for x, y in pairs if jnp.issubdtype(y.dtype, jnp.inexact)]
    each = [jnp.all(jnp.isfinite(y) | ~jnp.isfinite(x)) for x, y in floats]
    return jnp.all(jnp.stack(each)) if each else jnp.ones((), bool)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry of every leaf is finite."""
    each = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(each)) if each else jnp.ones((), bool)
