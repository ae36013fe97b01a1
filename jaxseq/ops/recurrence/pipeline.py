"""The nonlinear recurrence with its positions sharded over devices: a pipeline over micro-batches of the rows.

A nonlinear state cannot be computed before the one before it: a rank starts a micro-batch when the rank before it has
finished its own segment of that micro-batch. With n ranks and m micro-batches there are m + n - 1 rounds, and a rank
idles in n - 1 of them: the share (n - 1) / (m + n - 1) of the time is lost, (n - 1) / n with a single row. What is
gained is memory, 1/n of the activations a device; a step over fewer rows also seldom takes proportionally less time.
The ranks exchange one state a row and round, whatever the length.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.sequence_axis import SEQUENCE, SequenceAxis, from_last_rank, select, shift, spec, starts_afresh
from jaxseq.typing import Array, SegmentIds

Run = Callable[[Any, Any, Array, SegmentIds | None], tuple[Any, Array]]
"""``run(weights, state, xs, segment_ids) -> (state, ys)``: the op as one device computes it."""

MICRO_BATCHES_PER_RANK = 2
"""At most this many micro-batches for each rank: more of them idle less, and each has fewer rows a product."""


def recurrence_across_devices(
    run: Run, axis: SequenceAxis, weights: Any, state: Any, xs: Array, segment_ids: SegmentIds | None
) -> tuple[Any, Array]:
    """``run(weights, state, xs, segment_ids)``, every rank for its segment; the last state is that of the last rank.

    Args:
      weights: a pytree of arrays that all ranks hold whole; their gradients are summed once, after the pipeline.
      state: arrays ``[*B, F]``.
      xs: ``[*B, T, ...]``.
    """
    batch = jax.tree.leaves(state)[0].shape[:-1]
    rows = axis.rows(batch)

    def segment(weights: Any, state: Any, xs: Array, segment_ids: SegmentIds | None) -> tuple[Any, Array]:
        arrays = state, xs, segment_ids, starts_afresh(segment_ids, axis.size)
        if not batch:
            arrays = jax.tree.map(lambda a: a[None], arrays)
        last, ys = _pipeline(run, axis.size, weights, *arrays)
        if not batch:
            last, ys = jax.tree.map(lambda a: a[0], (last, ys))
        return from_last_rank(last, axis.size), ys

    along, before = spec(*rows, SEQUENCE), spec(*rows)
    ids = None if segment_ids is None else along
    split = axis.map(segment, (spec(), before, along, ids), (before, along))
    result: tuple[Any, Array] = split(weights, state, xs, segment_ids)
    return result


def _pipeline(
    run: Run, size: int, weights: Any, state: Any, xs: Array, segment_ids: SegmentIds | None, fresh: Array | None
) -> tuple[Any, Array]:
    """This rank's last state and outputs, in rounds: round r computes micro-batch r - rank."""
    count, place = _count_micro_batches(len(xs), size), lax.axis_index(SEQUENCE)

    def split(a: Array) -> Array:
        return a.reshape(count, a.shape[0] // count, *a.shape[1:])

    groups = jax.tree.map(split, (state, xs, segment_ids, fresh))

    def work(begin: Any, xs: Array, segment_ids: SegmentIds | None) -> tuple[Any, Array]:
        return run(weights, begin, xs, segment_ids)

    def idle(begin: Any, xs: Array, segment_ids: SegmentIds | None) -> tuple[Any, Array]:
        out = jax.eval_shape(work, begin, xs, segment_ids)[1]
        return begin, jnp.zeros(out.shape, out.dtype)

    def one_round(incoming: Any, number: Array) -> tuple[Any, tuple[Any, Array]]:
        index = number - place
        at = jnp.clip(index, 0, count - 1)
        first, xs, ids, fresh = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, at, keepdims=False), groups)
        begin = segments.reset(select(place == 0, first, incoming), fresh)
        last, ys = lax.cond((index >= 0) & (index < count), work, idle, begin, xs, ids)
        return shift(last, size), (last, ys)

    nothing = jax.tree.map(lambda a: jnp.zeros_like(a[0]), groups[0])
    _, found = lax.scan(one_round, nothing, jnp.arange(count + size - 1, dtype=jnp.int32))

    def own_rounds(a: Array) -> Array:
        a = lax.dynamic_slice_in_dim(a, place, count)
        return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])

    result: tuple[Any, Array] = jax.tree.map(own_rounds, found)
    return result


def _count_micro_batches(rows: int, size: int) -> int:
    """The largest divisor of the rows up to the limit."""
    return max(n for n in range(1, max(min(rows, MICRO_BATCHES_PER_RANK * size), 1) + 1) if rows % n == 0)
