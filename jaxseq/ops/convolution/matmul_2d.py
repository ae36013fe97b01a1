"""A product with a weight matrix that stays two-dimensional under ``vmap`` and in its own transposes.

``jnp.matmul`` of mapped rows becomes a three-dimensional product: for its weight gradient XLA's CPU backend copies both
operands, and a scan that reads the result transposes it once more (13 % of an LSTM's time, measured). Here a mapped
batch becomes more rows, right behind the leading axis (time), where a scan reads it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops.batch_shards import vary_alike
from jaxseq.typing import Array, Float

_matmul_p = Primitive("matmul_2d")


@jax.jit
def matmul_2d(rows: Float[Array, "A D"], weight: Float[Array, "D F"]) -> Float[Array, "A F"]:
    """``rows @ weight``, linear in both, in every mode of differentiation."""
    return _matmul_p.bind(*vary_alike((rows, weight)))


def _product(rows: Array, weight: Array) -> Array:
    return rows @ weight


def _transpose_rows(cotangent: Array, rows: Any, weight: Array) -> Array:
    return matmul_2d(cotangent, weight.T)


def _transpose_weight(cotangent: Array, rows: Array, weight: Any) -> Array:
    return rows.T @ cotangent


def _batch_rule(arguments: tuple[Array, Array], axes: tuple[Any, Any]) -> tuple[Array, int]:
    rows, weight = arguments
    if axes[1] is not None:
        return jax.vmap(_product, in_axes=axes)(rows, weight), 0
    rows = jnp.moveaxis(rows, axes[0], 1)
    flat = matmul_2d(rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[-1]), weight)
    return flat.reshape(*rows.shape[:2], weight.shape[-1]), 1


_matmul_p.def_impl(_product)
_matmul_p.def_abstract_eval(lambda rows, weight: rows.update(shape=(rows.shape[0], weight.shape[1])))
mlir.register_lowering(_matmul_p, mlir.lower_fun(_product, multiple_results=False))
ad.defbilinear(_matmul_p, _transpose_rows, _transpose_weight)
batching.primitive_batchers[_matmul_p] = _batch_rule
