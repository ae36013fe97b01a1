"""Sums over rows and over features, and linear maps of all rows: an added vector, a product with a matrix.

XLA's CPU backend sums over the leading axes of ``[32, 128, 512]`` in 2.4 ms, and multiplies by a row of ones in 0.14 ms
(docs/performance.md, training steps). Gradients of biases and norms are such sums.
"""

import math

import jax
import jax.numpy as jnp

from jaxseq.ops.batched_primitive import Operands, batched_linear_call
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

MIN_ROWS = 64
"""Fewer rows are summed as they are."""


def sums_as_products(x: Array) -> bool:
    """Whether sums over this array are computed as matrix products: on a CPU, in one program, in at least float32."""
    mesh, own = jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh
    whole = mesh.empty or mesh.size == 1 or not (mesh.auto_axes or mesh.explicit_axes)
    return whole and not own.explicit_axes and jax.default_backend() == "cpu" and at_least_float32(x.dtype) == x.dtype


def sum_rows(x: Float[Array, "*B F"]) -> Float[Array, " F"]:
    """The sum over all axes but the last, in at least float32."""
    rows = math.prod(x.shape[:-1])
    if rows < MIN_ROWS or not sums_as_products(x):
        return jnp.sum(x, axis=tuple(range(x.ndim - 1)), dtype=at_least_float32(x.dtype))
    return jnp.ones(rows, x.dtype) @ x.reshape(rows, x.shape[-1])


def sum_features(x: Float[Array, "*B F"], weights: Float[Array, " F"] | None = None) -> Float[Array, "*B 1"]:
    """The sum over the last axis, of ``x`` or of ``x * weights``."""
    if x.ndim == 1 or not sums_as_products(x):
        return jnp.sum(x if weights is None else x * as_row(weights, x.ndim), axis=-1, keepdims=True)
    return (x @ (jnp.ones(x.shape[-1], x.dtype) if weights is None else weights))[..., None]


def add_to_rows(x: Float[Array, "*B F"], vector: Float[Array, " F"]) -> Float[Array, "*B F"]:
    """``x + vector``; the gradient of the vector is ``sum_rows``."""
    if x.ndim == 1 or not sums_as_products(x):
        return x + as_row(vector, x.ndim)
    return _add(x, vector)


def as_row(vector: Float[Array, " F"], ndim: int) -> Float[Array, "*B F"]:
    """The vector with leading axes of 1."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def multiply_rows(x: Float[Array, "*B D"], W: Float[Array, "D F"]) -> Float[Array, "*B F"]:
    """``x W``; the gradient of W is a product of two matrices that transposes the narrower one, for any batch."""
    return _multiply(x, W) if x.ndim > 1 and sums_as_products(x) else x @ W


@jax.custom_jvp
def _multiply(x: Array, W: Array) -> Array:
    return x @ W


@_multiply.defjvp
def _multiply_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, W), (d_x, d_W) = primals, tangents
    fixed, linear = Operands(W, x, ()), Operands(d_W, d_x, ())
    return _multiply(x, W), batched_linear_call(_multiply_tangent, _multiply_transpose, None, fixed, linear).rows


def _multiply_tangent(_: None, fixed: Operands, linear: Operands) -> Operands:
    return Operands((), linear.rows @ fixed.shared + fixed.rows @ linear.shared, ())


def _multiply_transpose(_: None, fixed: Operands, cotangents: list[Array]) -> Operands:
    (d_out,) = cotangents
    return Operands(row_products(fixed.rows, d_out), d_out @ fixed.shared.T, ())


def row_products(x: Float[Array, "*B D"], y: Float[Array, "*B F"]) -> Float[Array, "D F"]:
    """``xᵀ y`` over all rows. XLA transposes the left factor, which is the narrower one."""
    x, y = (a.reshape(math.prod(a.shape[:-1]), a.shape[-1]) for a in (x, y))
    return x.T @ y if x.shape[1] <= y.shape[1] else (y.T @ x).T


@jax.custom_jvp
def _add(x: Array, vector: Array) -> Array:
    return x + as_row(vector, x.ndim)


@_add.defjvp
def _add_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    d_x, d_vector = tangents
    found = batched_linear_call(_add_tangent, _add_transpose, None, Operands((), (), ()), Operands(d_vector, d_x, ()))
    return _add(*primals), found.rows


def _add_tangent(_: None, fixed: Operands, linear: Operands) -> Operands:
    return Operands((), _add(linear.rows, linear.shared), ())


def _add_transpose(_: None, fixed: Operands, cotangents: list[Array]) -> Operands:
    (d_out,) = cotangents
    return Operands(sum_rows(d_out), d_out, ())
