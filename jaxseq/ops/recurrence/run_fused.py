"""The call of the fused implementation: the batch flattened, chunks chosen, rows and heads spread over a mesh."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from jaxseq.ops import segments
from jaxseq.ops.batch_shards import Split, by_batch_shard, tensor_shards, vary_alike
from jaxseq.ops.recurrence.cells import Cell
from jaxseq.ops.recurrence.fused import Rows, Static, Weights, fused
from jaxseq.ops.recurrence.pointwise import is_pointwise, trace_cell
from jaxseq.typing import Array, Float, SegmentIds

CHUNK = 32
"""Steps of a chunk (measured: docs/performance.md)."""


def run_fused(
    cell: Cell,
    traced: Partial,
    state: Any,
    xs: Float[Array, "..."],
    kernel: Float[Array, "D GF"] | None,
    bias: Float[Array, " GF"] | None,
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"],
    *,
    segment_ids: SegmentIds | None,
    output_projection: Float[Array, "F P"] | None,
    recompute: bool,
) -> tuple[Any, Float[Array, "*B T F"] | Float[Array, "*B T P"]]:
    """The last state and all ``h_t``. ``traced`` is the cell as ``trace_cell`` returns it.

    The inputs ``xs`` are ``[*B, T, D]``; without a kernel they are projected already, ``[*B, T, G, F]``.

    Under a mesh whose axis ``tensor`` divides the heads of R, each device runs its own heads: they do not mix, so that
    the loop over time holds no collective.
    """
    batch = state[0].shape[:-1]
    size, rank, steps = math.prod(batch), len(batch), xs.shape[len(batch)]
    xs = segments.without_padding(xs, segment_ids)
    ids = None if segment_ids is None else segment_ids.reshape(size, steps)
    xs, state = jax.tree.map(lambda a: a.reshape(size, *a.shape[rank:]), (xs, state))
    length = max(1, round(steps**0.5)) if recompute else _chunk_length(steps)
    rows = xs, segments.masks(ids), state
    count = tensor_shards(R.shape[0])
    if count > 1 and _splits(cell, traced, R.shape[0] * R.shape[1]):
        last, ys = _on_heads(cell, (kernel, bias, R), rows, length, recompute)
    else:

        def run(shared: tuple, rows: tuple) -> tuple[Any, Array]:
            traced, weights = shared
            xs, masks, state = rows
            return _run(traced, weights, xs, masks, state, length, recompute)

        weights = Weights((), kernel, bias, R, output_projection)
        last, ys = by_batch_shard(run, (traced, weights), rows, batch=(size,), replicate=True)
    last, ys = jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), (last, ys))
    return last, ys.astype(xs.dtype)


def _run(
    cell: Partial, weights: Weights, xs: Array, masks: segments.SegmentMasks, state: Any, length: int, recompute: bool
) -> tuple[Any, Array]:
    """The call on one device, of a traced cell."""
    parameters, structure = jax.tree.flatten(cell)
    static = Static(structure, jax.tree.structure(state), weights.R.shape[2], length, recompute)
    weights = weights._replace(cell=tuple(parameters))
    rows = Rows(xs.reshape(*xs.shape[:2], math.prod(xs.shape[2:])), *masks)
    last, ys = fused(static, *vary_alike((weights, rows, tuple(jax.tree.leaves(state)))))
    return jax.tree.unflatten(static.state, last), ys


def _on_heads(cell: Cell, weights: tuple, rows: tuple, length: int, recompute: bool) -> tuple[Any, Array]:
    """The call with rows and heads spread over the mesh; each device traces the cell for the units of its heads."""
    kernel, bias, R = weights
    heads, units, gates, _ = R.shape
    width = heads * units
    kernel = None if kernel is None else kernel.reshape(len(kernel), gates, width)
    bias = None if bias is None else bias.reshape(gates, width)

    def run(shared: tuple, rows: tuple) -> tuple[Any, Array]:
        leaves, kernel, bias, R = shared
        xs, masks, state = rows
        traced, reason = trace_cell(jax.tree.unflatten(structure, leaves), state, gates)
        assert traced is not None, reason
        kernel = None if kernel is None else kernel.reshape(len(kernel), -1)
        weights = Weights((), kernel, None if bias is None else bias.reshape(-1), R, None)
        return _run(traced, weights, xs, masks, state, length, recompute)

    leaves, structure = jax.tree.flatten(cell if isinstance(cell, Partial) else Partial(cell))
    last = PartitionSpec("tensor")
    split = Split(
        shared=(
            [last if jnp.ndim(leaf) else PartitionSpec() for leaf in leaves],
            PartitionSpec(None, None, "tensor"),
            PartitionSpec(None, "tensor"),
            PartitionSpec("tensor"),
        ),
        rows=(PartitionSpec() if kernel is not None else PartitionSpec(None, None, "tensor"), PartitionSpec(), last),
        results=(last, PartitionSpec(None, "tensor")),
    )
    return by_batch_shard(run, (leaves, kernel, bias, R), rows, batch=(len(rows[0]),), split=split, replicate=True)


def _splits(cell: Cell, traced: Partial, width: int) -> bool:
    """Whether the cell can be traced for a part of the units.

    It is pointwise, and its parameters, all bound by Partial, are one a unit.
    """
    if not is_pointwise(traced):
        return False
    leaves = jax.tree.leaves(cell) if isinstance(cell, Partial) else []
    bound = {id(leaf) for leaf in leaves}
    return all(jnp.shape(leaf) in ((), (width,)) for leaf in leaves) and all(
        id(parameter) in bound for parameter in jax.tree.leaves(traced)
    )


def _chunk_length(steps: int) -> int:
    """The length nearest to ``CHUNK`` that divides the sequence, if there is one near it."""
    fits = [n for n in range(CHUNK // 2, 2 * CHUNK + 1) if steps % n == 0]
    return min(fits, key=lambda n: abs(n - CHUNK)) if fits else CHUNK
