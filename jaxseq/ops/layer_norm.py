"""Layer normalization with its own derivatives."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.batched_primitive import Operands, batched_linear_call
from jaxseq.ops.rows import as_row, sum_features, sum_rows, sums_as_products
from jaxseq.typing import Array, Float


def layer_norm(
    x: Float[Array, "*B F"], scale: Float[Array, " F"], bias: Float[Array, " F"], *, epsilon: float = 1e-6
) -> Float[Array, "*B F"]:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over the features (Ba et al. 2016, arXiv:1607.06450).

    All arrays have one dtype, in which the statistics are computed. The gradient takes mean and deviation of each row
    from the forward pass:

        g = d_out * scale,    d_x = (g - mean(g) - normalized * mean(g * normalized)) / deviation
    """
    if x.ndim == 1 or not sums_as_products(x):  # XLA differentiates, fuses and partitions the equation
        return _apply(x, *_statistics(x, epsilon), scale, bias)
    return _layer_norm(epsilon, x, scale, bias)


def _statistics(x: Array, epsilon: float) -> tuple[Array, Array]:
    """The mean and the inverse deviation of each row, ``[*B, 1]``."""
    centered = x - (mean := sum_features(x) / x.shape[-1])
    return mean, lax.rsqrt(sum_features(centered * centered) / x.shape[-1] + epsilon)


def _apply(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array) -> Array:
    return (x - mean) * inverse * as_row(scale, x.ndim) + as_row(bias, x.ndim)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _layer_norm(epsilon: float, x: Array, scale: Array, bias: Array) -> Array:
    return _apply(x, *_statistics(x, epsilon), scale, bias)


@_layer_norm.defjvp
def _layer_norm_jvp(epsilon: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, scale, bias), (d_x, *d_vectors) = primals, tangents
    mean, inverse = _statistics(x, epsilon)
    fixed = Operands(scale, (x, mean, inverse), ())
    linear = Operands(tuple(d_vectors), d_x, ())
    return _apply(x, mean, inverse, scale, bias), batched_linear_call(_tangent, _transpose, None, fixed, linear).rows


def _tangent(_: None, fixed: Operands, linear: Operands) -> Operands:
    x, mean, inverse = fixed.rows
    normalized, (d_scale, d_bias) = (x - mean) * inverse, linear.shared
    moved = _project(linear.rows, normalized, sum_features(linear.rows), sum_features(linear.rows * normalized))
    moved = _apply(moved, jnp.zeros_like(mean), inverse, fixed.shared, d_bias)
    return Operands((), moved + normalized * as_row(d_scale, x.ndim), ())


def _transpose(_: None, fixed: Operands, cotangents: list[Array]) -> Operands:
    x, mean, inverse = fixed.rows
    scale, (d_out,) = fixed.shared, cotangents
    normalized = (x - mean) * inverse
    product = d_out * normalized
    d_x = inverse * _project(
        d_out * as_row(scale, x.ndim), normalized, sum_features(d_out, scale), sum_features(product, scale)
    )
    return Operands((sum_rows(product), sum_rows(d_out)), d_x, ())


def _project(d: Array, normalized: Array, total: Array, along: Array) -> Array:
    """``d`` without its parts along ones and ``normalized``; its products with these are ``total`` and ``along``."""
    return d - (total + normalized * along) / d.shape[-1]
