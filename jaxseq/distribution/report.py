"""The table of what a device holds: the sharding and the bytes of every array."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxseq.typing import PyTree

MAX_ROWS = 24


class ArrayInfo(NamedTuple):
    """A row of the table."""

    name: str
    shape: tuple[int, ...]
    spec: str
    """``fsdp, -``: the axis of each dimension, or a minus; ``replicated`` if there is none."""
    bytes: int
    bytes_per_device: int


def array_table(tree: PyTree) -> list[ArrayInfo]:
    """One row for each array, largest first."""
    rows = [_row(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return sorted(rows, key=lambda row: (-row.bytes, row.name))


def format_placement(mesh: str, params: PyTree, opt_state: PyTree, batch_size: int, row_devices: int) -> str:
    """The mesh, the batch of all devices and of one, the largest parameters, and the sums of bytes."""
    table = array_table(params)
    shown = table[:MAX_ROWS]
    width = max((len(row.name) for row in shown), default=0)
    lines = [
        f"mesh: {mesh}",
        f"batch: {batch_size} rows, {batch_size // row_devices} a device",
        *(
            f"  {row.name:<{width}}  {'x'.join(map(str, row.shape)) or 'scalar':>14}  {row.spec:<18}"
            f"  {row.bytes_per_device:>12,} bytes a device"
            for row in shown
        ),
    ]
    if len(shown) < len(table):
        lines.append(f"  and {len(table) - len(shown)} smaller ones")
    for name, rows in (("parameters", table), ("optimizer", array_table(opt_state))):
        whole, part = sum(row.bytes for row in rows), sum(row.bytes_per_device for row in rows)
        lines.append(f"{name}: {whole:,} bytes, {part:,} a device")
    return "\n".join(lines)


def _row(path: jax.tree_util.KeyPath, leaf: Any) -> ArrayInfo:
    shape, size = np.shape(leaf), np.dtype(leaf.dtype).itemsize
    sharding = leaf.sharding
    spec = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
    named = any(axis is not None for axis in spec)
    text = ", ".join("-" if axis is None else str(axis) for axis in spec) if named else "replicated"
    part = math.prod(sharding.shard_shape(shape))
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return ArrayInfo(name, shape, text, math.prod(shape) * size, part * size)
