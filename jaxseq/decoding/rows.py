"""Operations on rows that stay on their device if the rows are sharded over a mesh."""

import math

import jax

from jaxseq.typing import Array, Float


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
