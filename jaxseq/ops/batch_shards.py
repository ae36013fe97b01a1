"""Ops under a mesh: each device runs an op on its own rows of the batch.

Left to itself, XLA's partitioner gathers activations where an op merges the batch with time or loops over it, and adds
up the gradients of weights over the devices at every step of a loop. Inside ``jax.shard_map`` an op is the program of
one device: weights are gathered before it, and their gradients are summed once, after it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxseq.typing import Array

BATCH_AXES = ("data", "fsdp")
"""The axes of an Auto mesh over which the batch is sharded. Those of an Explicit mesh are read from the arrays."""


class Split(NamedTuple):
    """The sharding of features: pytrees, or prefixes of them, of the axes of each array, of rows after the batch."""

    shared: Any
    rows: Any
    results: Any


def by_batch_shard(
    function: Callable[[Any, Any], Any],
    shared: Any,
    rows: Any,
    *,
    batch: tuple[int, ...],
    split: Split | None = None,
    replicate: bool = False,
) -> Any:
    """``function(shared, rows)``, computed by each device of the ambient mesh for its own rows.

    It is a plain call outside a mesh, inside ``jax.shard_map``, and where the devices do not divide the batch. In an
    Auto mesh with other names than ``BATCH_AXES``, XLA alone decides how to partition it.

    Args:
      function: of arrays alone, without random numbers; it does not mix the batch, and all arrays of its result lead
        with it.
      shared: a pytree of arrays without a batch (weights).
      rows: a pytree of arrays that lead with the batch.
      batch: the batch dimensions, of which the first is sharded.
      split: shards features over the Auto axis ``tensor`` besides, where ``tensor_shards`` says that it divides them.
      replicate: along the axes of an Auto mesh that are not for the batch, all devices compute the same, where XLA
        would partition a loop.
    """
    axes, explicit = _batch_axes(rows, batch)

    def run(shared: Any, rows: Any) -> Any:
        return _on_shards(function, shared, rows, axes, split, replicate)

    return _in_auto(run, explicit, axes)(shared, rows) if explicit else run(shared, rows)


def partitioned_by_xla(function: Callable) -> Callable:
    """Decorates a function of arrays that lead with the batch: under an Explicit mesh XLA partitions it, without types.

    Results are sharded as the first of the arrays that is.
    """

    @functools.wraps(function)
    def decorated(*arrays: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        explicit = () if mesh.empty else tuple(mesh.explicit_axes)
        if not explicit:
            return function(*arrays)
        return _in_auto(function, explicit, _axes_of_types(jax.tree.leaves(arrays)))(*arrays)

    return decorated


def _in_auto(function: Callable, explicit: tuple[str, ...], axes: tuple[str, ...]) -> Callable:
    """The function with these Explicit axes as Auto axes; its results lead with a batch sharded over ``axes``."""
    result: Any = jax.sharding.auto_axes(function, axes=explicit, out_sharding=PartitionSpec(axes or None))
    return result


def auto_batch_axes(batch: tuple[int, ...]) -> tuple[str, ...] | None:
    """The axes of an ambient Auto mesh that shard the batch in ``by_batch_shard``; None without such a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or mesh.explicit_axes:
        return None
    return _batch_axes(None, batch)[0]


def count_shards(axes: tuple[str, ...]) -> int:
    """The number of parts into which these axes of the ambient mesh cut an array."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes[axis] for axis in axes)


def shard_leading(tree: Any, axes: tuple[str, ...]) -> Any:
    """The arrays with their first dimension sharded over these axes of an Auto mesh, replicated over the others."""
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(axes or None))


def outside_mesh() -> Any:
    """A context for tracing what is evaluated later, under any mesh: the equations then name no mesh."""
    return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


def tensor_shards(parts: int) -> int:
    """The size of the Auto axis ``tensor`` of the ambient mesh if it divides that many parts, else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or "tensor" not in mesh.auto_axes:
        return 1
    size = dict(mesh.shape)["tensor"]
    return size if parts % size == 0 else 1


def _on_shards(
    function: Callable, shared: Any, rows: Any, axes: tuple[str, ...], split: Split | None, replicate: bool
) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    manual = {*axes, *(("tensor",) if split is not None else ())}
    if replicate and not mesh.empty and not mesh.manual_axes:
        others = (axis for axis in mesh.auto_axes if axis not in BATCH_AXES)  # vmap may hide the batch
        manual |= {axis for axis in others if dict(mesh.shape)[axis] > 1}
    if not manual:
        return function(shared, rows)

    def with_batch(specs: Any) -> Any:
        return jax.tree.map(
            lambda spec: PartitionSpec(axes or None, *spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
        )

    by = Split(*(PartitionSpec() for _ in Split._fields)) if split is None else split
    # Types of varying arrays (check_vma) would sum the gradients of weights where they are used: inside loops.
    on_shard = jax.shard_map(
        function,
        in_specs=(by.shared, with_batch(by.rows)),
        out_specs=with_batch(by.results),
        axis_names=manual,
        check_vma=False,
    )
    return jax.jit(on_shard)(shared, rows)


def _batch_axes(rows: Any, batch: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes that shard the batch, of which the last are dropped until they divide it; the Explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return (), ()
    explicit = tuple(mesh.explicit_axes)
    if explicit:
        axes = _axes_of_types(jax.tree.leaves(rows)) if batch else ()
    else:
        kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
        axes = tuple(name for name, kind in kinds if name in BATCH_AXES and kind == AxisType.Auto)
    axes = tuple(axis for axis in axes if count_shards((axis,)) > 1)
    while axes and (not batch or not batch[0] or batch[0] % count_shards(axes)):
        axes = axes[:-1]
    return axes, explicit


def _axes_of_types(leaves: list[Array]) -> tuple[str, ...]:
    """The axes over which the first dimension is sharded, read from the types of the arrays."""
    for leaf in leaves:
        spec = jax.typeof(leaf).sharding.spec
        if len(spec) and spec[0] is not None:
            return spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    return ()


def vary_alike(tree: Any) -> Any:
    """The arrays cast so that all vary over the manual mesh axes over which any of them varies.

    Inside ``jax.shard_map`` weights and fresh carries are the same on all devices, and inputs vary. A primitive and the
    carry of a loop need one type. The cotangent of what is cast is summed over the devices.
    """
    axes: frozenset = frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))
    if not axes:
        return tree

    def cast(x: Array) -> Array:
        missing = tuple(sorted(axes - varying_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def varying_axes(x: Any) -> frozenset:
    """The manual mesh axes over which an array, or one of that type, varies; none outside ``jax.shard_map``."""
    kind: Any = x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x)
    found = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    return frozenset(found)
