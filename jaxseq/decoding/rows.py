"""The largest of a row: operations that XLA does slowly, or not where the rows are, in their plain form."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array, Float, Int


def top_k(x: Float[Array, "*B V"], k: int) -> list[Array]:
    """``lax.top_k``. In a mesh each device searches its own rows, if the axes ``data`` and ``fsdp`` divide them.

    XLA's partitioner would gather all rows on every device first.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in ("data", "fsdp") if name in mesh.axis_names)
    devices = math.prod(mesh.shape[name] for name in axes)
    if devices == 1 or x.ndim < 2 or x.shape[0] % devices or mesh.manual_axes:
        return list(jax.lax.top_k(x, k))
    rows = jax.P(axes)
    return list(jax.shard_map(lambda x: tuple(jax.lax.top_k(x, k)), in_specs=rows, out_specs=rows)(x))


def argmax(x: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """``jnp.argmax`` along the last axis: the first of the largest, or the first NaN.

    It is the smallest index of a largest value: two reductions, which XLA vectorises on a CPU, where it does not
    vectorise a reduction of values and indices together.
    """
    largest = (x == jnp.max(x, axis=-1, keepdims=True)) | jnp.isnan(x)
    indices = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(largest, indices, jnp.int32(x.shape[-1] - 1)), axis=-1)
