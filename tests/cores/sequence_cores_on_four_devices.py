"""Whole cores on a mesh of 4 host devices: prints how values, carries and gradients differ from one device, as JSON.

``python sequence_cores_on_four_devices.py NAME...`` of ``CORES``, or ``hybrid``.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseq.cores import CORES, LSTM, RGLRU, Attention, Stacked

jax.config.update("jax_enable_x64", True)

B, T, D = 2, 16, 8
TYPES: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def make_core(name: str) -> Any:
    if name == "hybrid":
        return Stacked((RGLRU(D, **TYPES), Attention(D, num_heads=2, **TYPES), LSTM(D, **TYPES)))
    return CORES[name](D, **TYPES)


def documents() -> jax.Array:
    """Documents that cross the ends of segments, and padding."""
    ids = np.ones((B, T), np.int32)
    ids[0, 3:9], ids[0, 9:] = 2, 1
    ids[1, 2:6], ids[1, 9:13], ids[1, 13:] = 0, 5, 0
    return jnp.asarray(ids)


def mesh(data: int, sequence: int) -> Any:
    axes = ("data", "fsdp", "sequence", "tensor")
    return jax.make_mesh((data, 1, sequence, 1), axes, axis_types=(AxisType.Auto,) * 4)


def difference(name: str, shape: tuple[int, int]) -> float:
    """The largest difference of outputs, the final carry and all gradients."""
    core, ids = make_core(name), documents()
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)))
    xs = jnp.where((ids != 0)[..., None], xs, jnp.nan)
    carry = core.initial_carry((B,))
    parameters = core.init(jax.random.key(0), carry, xs, ids)

    def loss(parameters: Any, xs: jax.Array, ids: jax.Array) -> tuple:
        after, ys = core.apply(parameters, carry, xs, ids)
        return (ys * jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)).sum(), (after, ys)

    expected = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(parameters, xs, ids)
    where = mesh(*shape)
    along = NamedSharding(where, P(("data", "fsdp"), "sequence"))
    with jax.set_mesh(where):
        on_mesh = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        found = on_mesh(parameters, jax.device_put(xs, along), jax.device_put(ids, along))

    def differ(x: Any, y: Any) -> float:
        x, y = np.asarray(x, float), np.asarray(y, float)
        return float(np.abs(x - y).max(initial=0)) if np.isfinite(y).all() else float("inf")

    return max(jax.tree.leaves(jax.tree.map(differ, expected, found)))


if __name__ == "__main__":
    print(
        json.dumps({f"{name} {shape}": difference(name, shape) for name in sys.argv[1:] for shape in ((1, 4), (2, 2))})
    )
