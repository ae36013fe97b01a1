"""The laws of several devices: a core computes on a mesh what it computes on one device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseq.testing.compilation import jitted
from jaxseq.testing.laws import close, law
from jaxseq.testing.subject import BATCH, IDS, PIECE, Result, Subject

_ADVICE = (
    "Rows of a batch must not depend on one another, nor on the size of the batch. Under jax.shard_map and an Explicit "
    "mesh, arrays made inside must have the type of the inputs: make them by jnp.zeros_like, or leave loops to ops."
)


def require_devices(name: str, devices: int) -> None:
    """Raises ValueError unless that many devices divide the batch of the laws and are there."""
    if devices < 2 or BATCH % devices:
        raise ValueError(f"{name}: devices={devices} must be 2 or more and divide the batch of {BATCH} rows")
    found = jax.device_count()
    if found < devices:
        raise ValueError(
            f"{name} needs {devices} devices, but JAX has {found}. On a CPU, start Python with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={devices} in the environment"
        )


@law("devices", _ADVICE)
def check_auto_mesh(subject: Subject, devices: int, tolerance: float) -> None:
    """Under ``jax.jit`` in an Auto mesh, with the batch and every parameter sharded over ``fsdp``."""
    mesh = _mesh({"data": 1, "fsdp": devices}, AxisType.Auto)
    where = f"on {devices} devices of an Auto mesh"
    _check_jit(subject, mesh, lambda a: _largest_dimension(a, devices), ("data", "fsdp"), tolerance, where)


@law("devices", _ADVICE)
def check_explicit_mesh(subject: Subject, devices: int, tolerance: float) -> None:
    """Under ``jax.jit`` in an Explicit mesh, as ``jax.make_mesh`` makes it, with the batch sharded over ``data``."""
    mesh = _mesh({"data": devices}, AxisType.Explicit)
    where = f"on {devices} devices of an Explicit mesh"
    _check_jit(subject, mesh, lambda _: PartitionSpec(), ("data",), tolerance, where)


def _check_jit(
    subject: Subject, mesh: Mesh, of_parameter: Callable, rows_over: tuple[str, ...], tolerance: float, where: str
) -> None:
    """The jitted core with its parameters and rows placed on a mesh, against one device."""
    inputs = _inputs(subject)
    with subject.precision(), jax.set_mesh(mesh):
        params = jax.tree.map(lambda a: _placed(mesh, a, of_parameter(a)), subject.params)
        rows = jax.tree.map(lambda a: _placed(mesh, a, PartitionSpec(rows_over)), inputs)
        found = jax.device_get(subject.runs["batched"](params, *rows))
    _compare(subject, inputs, found, tolerance, where)


@law("devices", _ADVICE)
def check_shard_map(subject: Subject, devices: int, tolerance: float) -> None:
    """Inside ``jax.shard_map``, with the batch sharded over ``data``: the gradients of parameters are summed."""
    mesh = _mesh({"data": devices}, AxisType.Auto)
    inputs = _inputs(subject)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    run: Callable = jax.shard_map(
        subject.functions["batched"],
        mesh=mesh,
        in_specs=(whole, *(rows for _ in inputs)),
        out_specs=Result(carry=rows, ys=rows, d_params=whole, d_carry=rows, d_xs=rows),  # type: ignore[arg-type]
    )
    with subject.precision():
        found = jax.device_get(jitted(run)(subject.params, *inputs))
    _compare(subject, inputs, found, tolerance, f"on {devices} devices by jax.shard_map")


def _mesh(sizes: dict[str, int], kind: AxisType) -> Mesh:
    shape = tuple(sizes.values())
    return jax.make_mesh(shape, tuple(sizes), axis_types=(kind,) * len(shape), devices=jax.devices()[: max(shape)])


def _placed(mesh: Mesh, array: Any, spec: PartitionSpec) -> Any:
    return jax.device_put(array, NamedSharding(mesh, spec))


def _largest_dimension(array: Any, devices: int) -> PartitionSpec:
    """The sharding over ``fsdp`` of the largest dimension that the devices divide."""
    fits = [axis for axis, n in enumerate(array.shape) if n % devices == 0]
    if not fits:
        return PartitionSpec()
    chosen = max(fits, key=lambda axis: array.shape[axis])
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(array.ndim)))


def _inputs(subject: Subject) -> tuple:
    """Carry, inputs, segment ids, cotangents of the carry and of the outputs."""
    ones = np.ones((BATCH, PIECE), np.int32)
    with subject.precision():
        carry, _ = jitted(subject.core.apply)(subject.params, subject.fresh(), subject.xs(3, PIECE), ones)
    carry = jax.device_get(carry)
    return carry, subject.xs(1), np.asarray(IDS), *subject.cotangents(carry)


def _compare(subject: Subject, inputs: tuple, found: Result, tolerance: float, what: str) -> None:
    close(found._asdict(), subject(*inputs)._asdict(), tolerance, what)
