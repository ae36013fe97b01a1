"""Causal convolution with its positions sharded over devices: each rank is given the last inputs before its segment.

The P inputs before a segment are its halo, whatever its length. They are the last inputs of the rank before, unless its
segment holds fewer real inputs of the document (padding, short segments): then those of earlier ranks follow.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxseq.ops import segments
from jaxseq.ops.sequence_axis import (
    SEQUENCE,
    SequenceAxis,
    exclusive_scan,
    from_last_rank,
    spec,
    starts_afresh,
)
from jaxseq.typing import Array, Float, Int, SegmentIds


def convolution_across_devices(
    run: Callable[[Array, Array, Array, SegmentIds | None], tuple[Array, Array]],
    axis: SequenceAxis,
    state: Float[Array, "*B P D"],
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    segment_ids: SegmentIds | None,
) -> tuple[Float[Array, "*B P D"], Float[Array, "*B T F"]]:
    """``run(state, xs, kernel, segment_ids)`` of every rank for its segment; the last state is that of the last rank.

    The halos pass by 1 + ⌈log2(ranks - 1)⌉ permutations of P rows. A depthwise convolution shards its channels over
    "tensor" too.
    """
    size, kept = axis.size, state.shape[-2]

    def segment(
        state: Array, xs: Array, kernel: Array, segment_ids: SegmentIds | None
    ) -> tuple[Float[Array, "*B P D"], Float[Array, "*B T F"]]:
        fresh = starts_afresh(segment_ids, size)
        with jax.numpy_dtype_promotion("standard"):  # halos are as exact as the inputs
            wide = state.astype(jnp.promote_types(state.dtype, xs.dtype))
        if kept:
            ends, _ = run(jnp.zeros_like(wide), xs, kernel, segment_ids)
            own = ends, _count_inputs(xs, segment_ids, fresh, kept)
            full = jnp.full(xs.shape[:-2], kept, jnp.int32)
            wide = segments.reset(exclusive_scan(_join, (wide, full), own, size)[0], fresh)
        last, ys = run(wide, xs, kernel, segment_ids)
        return from_last_rank(last.astype(state.dtype), size), ys

    rows = axis.rows(xs.shape[:-2])
    channels = axis.heads(xs.shape[-1]) if kernel.ndim == 2 else None
    along, last = spec(*rows, SEQUENCE, channels), spec(*rows, None, channels)
    ids = None if segment_ids is None else spec(*rows, SEQUENCE)
    split = axis.map(segment, (last, along, spec(*(None,) * (kernel.ndim - 1), channels), ids), (last, along))
    result: tuple[Array, Array] = split(state, xs, kernel, segment_ids)
    return result


def _count_inputs(xs: Array, segment_ids: SegmentIds | None, fresh: Array | None, most: int) -> Int[Array, "*B"]:
    """The number of the last ``most`` inputs that are this rank's own; all if a document starts in its segment."""
    if segment_ids is None or fresh is None:
        return jnp.full(xs.shape[:-2], min(xs.shape[-2], most), jnp.int32)
    count = jnp.minimum(segments.is_real(segment_ids).sum(-1, dtype=jnp.int32), most)
    return jnp.where(fresh | segments.starts(segment_ids).any(-1), most, count)


def _join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    """The last inputs of two neighbouring segments and their number; the last ``count`` of each buffer are its own."""
    (before, number), (after, count) = earlier, later
    size = after.shape[-2]
    place = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (*count.shape, size))
    source = jnp.minimum(place + count[..., None], size - 1)
    moved = jnp.take_along_axis(before, source[..., None], axis=-2)
    own = place >= size - count[..., None]
    return segments.select(own, after, moved), jnp.minimum(number + count, size)
