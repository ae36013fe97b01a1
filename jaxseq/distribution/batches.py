"""Batches as global arrays: each process makes the rows of its own devices, and the rows depend on no topology."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseq.distribution.mesh import BATCH_AXES
from jaxseq.typing import PyTree


@runtime_checkable
class RowBatches(Protocol):
    """``batches(step, rows) -> batch``: NumPy arrays of the given rows of a step's batch, of all rows for None."""

    @property
    def batch_size(self) -> int:
        """The number of rows of a batch."""

    def __call__(self, step: int, rows: np.ndarray | None = None) -> Any:
        """Rows ``rows`` (indices) of the batch of this step: those of the whole batch, whatever else is asked for."""


class PlacedBatches:
    """Batches of global arrays: rows over ``data`` and ``fsdp``, positions of ``[B, T]`` over ``sequence``.

    Arrays without rows (scalars) are replicated.

    Raises:
        ValueError: the devices do not divide the batch.
    """

    def __init__(self, batches: RowBatches, mesh: Mesh):
        self.inner, self.mesh = batches, mesh
        self.batch_size = batches.batch_size
        count = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        if self.batch_size % count:
            raise ValueError(
                f"a batch of {self.batch_size} rows cannot be divided among {count} devices "
                f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']})"
            )
        self.own_rows = own_rows(mesh, self.batch_size)

    @property
    def fingerprint(self) -> str:
        """That of the batches, which depends on no mesh."""
        made: str = self.inner.fingerprint  # type: ignore[attr-defined]
        return made

    def shape_steps(self, step: int) -> Sequence[int]:
        """For each shape of batch, the first step from ``step`` on that has it, if the batches tell more than one."""
        tell = getattr(self.inner, "shape_steps", None)
        steps: Sequence[int] = [step] if tell is None else tell(step)
        return steps

    def __call__(self, step: int) -> PyTree:
        """The batch of this step, a tree of global arrays."""
        rows = self.own_rows
        if len(rows) == self.batch_size:
            return place_rows(self.inner(step), self.mesh)
        return place_rows(self.inner(step, rows), self.mesh, rows, self.batch_size)


class PlacedStreams(PlacedBatches):
    """Placed batches that are consecutive chunks of long sequences."""

    def stream_start(self, step: int) -> int:
        """The step at which the sequences of this step's batch begin."""
        start: int = self.inner.stream_start(step)  # type: ignore[attr-defined]
        return start


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The sorted indices of the rows that the devices of this process hold."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def place_rows(tree: PyTree, mesh: Mesh, rows: np.ndarray | None = None, batch_size: int | None = None) -> PyTree:
    """Global arrays of a batch, of which this process has all rows, or the given ones of ``batch_size``."""

    def place(leaf: Any) -> jax.Array:
        local = np.asarray(leaf)
        shape = local.shape
        if rows is not None and shape:
            shape = (batch_size, *shape[1:])
        sharding = NamedSharding(mesh, batch_spec(shape, mesh))

        def shard(index: Any) -> Any:
            if rows is None or not shape:
                return local[index]
            wanted = np.arange(shape[0])[index[0]]
            return local[np.searchsorted(rows, wanted)][(slice(None), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(place, tree)


def whole_arrays(tree: PyTree) -> PyTree:
    """NumPy arrays of a tree on every process; shards of other processes are gathered, by all processes at once."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)  # process_allgather would concatenate what each process has whole

    return jax.tree.map(whole, tree)


def rows_spec(shape: tuple, mesh: Mesh) -> PartitionSpec:
    """The first dimension over the batch's axes, if they divide it."""
    count = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return PartitionSpec(BATCH_AXES) if shape and shape[0] and shape[0] % count == 0 else PartitionSpec()


def batch_spec(shape: tuple, mesh: Mesh) -> PartitionSpec:
    """``rows_spec``, and the positions of ``[B, T]`` over ``sequence``, if it divides them."""
    rows, length = rows_spec(shape, mesh), mesh.shape["sequence"]
    if len(shape) == 2 and length > 1 and shape[1] and shape[1] % length == 0:
        return PartitionSpec(rows[0] if len(rows) else None, "sequence")
    return rows
