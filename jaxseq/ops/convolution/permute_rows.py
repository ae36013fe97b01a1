"""A permutation of rows as a primitive whose transpose is a gather by the inverse permutation.

JAX's transpose of a gather is a scatter, which costs several times as much on a CPU. Forward mode, higher derivatives
and ``vmap`` are supported.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops.batch_shards import vary_alike
from jaxseq.ops.batched_primitive import mapped_axis_first
from jaxseq.typing import Array, Float, Int

_permute_p = Primitive("permute_rows")


@jax.jit
def permute_rows(
    rows: Float[Array, "*B T D"], source: Int[Array, "*B T"], to: Int[Array, "*B T"]
) -> Float[Array, "*B T D"]:
    """The row ``source[t]`` at each t; ``to`` is the inverse permutation."""
    return _permute_p.bind(*vary_alike((rows, source, to)))


def _permute(rows: Array, source: Array, to: Array) -> Array:
    *batch, length, width = rows.shape
    first = length * jnp.arange(math.prod(batch), dtype=source.dtype).reshape(*batch, 1)
    flat = rows.reshape(math.prod(batch) * length, width)
    return jnp.take(flat, (source + first).reshape(-1), axis=0, mode="clip").reshape(rows.shape)


def _jvp_rule(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    rows, source, to = primals
    return permute_rows(rows, source, to), permute_rows(tangents[0], source, to)


def _transpose_rule(cotangent: Any, rows: Any, source: Array, to: Array) -> tuple:
    return permute_rows(cotangent, to, source), None, None


def _batch_rule(arguments: tuple, axes: tuple) -> tuple[Array, int]:
    return permute_rows(*mapped_axis_first(arguments, axes)), 0


_permute_p.def_impl(_permute)
_permute_p.def_abstract_eval(lambda rows, source, to: rows)
mlir.register_lowering(_permute_p, mlir.lower_fun(_permute, multiple_results=False))
ad.primitive_jvps[_permute_p] = _jvp_rule
ad.primitive_transposes[_permute_p] = _transpose_rule
batching.primitive_batchers[_permute_p] = _batch_rule
