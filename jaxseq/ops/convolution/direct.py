"""The direct implementation of causal convolution: all positions at once.

With segment ids a tap reads the last *real* inputs of the same document. So real positions are first moved to the front
of their row (a permutation); there a tap is a plain shift, and a document is contiguous.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.batch_shards import by_batch_shard
from jaxseq.ops.convolution.matmul_2d import matmul_2d
from jaxseq.ops.convolution.permute_rows import permute_rows
from jaxseq.ops.convolution.shifted_sum import shift_rows, shifted_sum
from jaxseq.typing import Array, Bool, Float, Int, SegmentIds


def direct_convolution(
    state: Float[Array, "*B P D"],
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    *,
    dilation: int,
    segment_ids: SegmentIds | None,
) -> tuple[Float[Array, "*B P D"], Float[Array, "*B T F"]]:
    """The last inputs and all outputs."""

    def run(kernel: Array, rows: tuple[Array, Array, SegmentIds | None]) -> tuple[Array, Array]:
        state, xs, segment_ids = rows
        return _convolve_rows(state, xs, kernel, dilation, segment_ids)

    return by_batch_shard(run, kernel, (state, xs, segment_ids), batch=xs.shape[:-2])


def _convolve_rows(
    state: Array, xs: Array, kernel: Array, dilation: int, segment_ids: SegmentIds | None
) -> tuple[Array, Array]:
    if segment_ids is None:
        return _convolve_document(state, xs, kernel, dilation)
    real = segments.is_real(segment_ids)
    xs = segments.without_padding(xs, segment_ids)
    if xs.shape[-2] == 1:  # a single step continues the state, whatever its id
        last, ys = _convolve_document(state, xs, kernel, dilation)
        return jnp.where(real[..., None], last, state), segments.without_padding(ys, segment_ids)
    source, to = _real_positions_first(real)
    xs = permute_rows(xs, source, to)
    documents = _count_documents(segment_ids, source, state.shape[-2])
    ys = _convolve(_prepend(state.astype(xs.dtype), xs), kernel, documents, dilation)
    ys = permute_rows(ys, to, source)
    last = _last(_prepend(state, xs), documents, real.sum(-1, dtype=jnp.int32), state.shape[-2])
    return last, segments.without_padding(ys, segment_ids)


def _prepend(state: Float[Array, "*B P D"], xs: Float[Array, "*B T D"]) -> Float[Array, "*B S D"]:
    return jnp.concatenate([state, xs.astype(state.dtype)], axis=-2)


def _convolve_document(state: Array, xs: Array, kernel: Array, dilation: int) -> tuple[Array, Array]:
    """One document without padding."""
    ys = _convolve(_prepend(state.astype(xs.dtype), xs), kernel, None, dilation)
    return _prepend(state, xs)[..., xs.shape[-2] :, :], ys


def _convolve(
    seen: Float[Array, "*B S D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    documents: Int[Array, "*B S"] | None,
    dilation: int,
) -> Float[Array, "*B T F"]:
    """The sum over the taps, over inputs of the same document."""
    count = kernel.shape[0]
    start = (count - 1) * dilation
    out_documents = None if documents is None else documents[..., start:]
    if kernel.ndim == 2:
        return shifted_sum(seen, kernel, documents, out_documents, dilation)
    *batch, total, width = seen.shape
    features = kernel.shape[-1]
    if out_documents is None:
        flat = seen.reshape(math.prod(batch), total, width)
        ys = lax.conv_general_dilated(
            flat, kernel, (1,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        return ys.reshape(*batch, total - start, features)
    every = matmul_2d(seen.reshape(-1, width), jnp.moveaxis(kernel, 0, 1).reshape(width, count * features))
    by_tap = jnp.split(every.reshape(*batch, total, count * features), count, axis=-1)
    taps = [shift_rows(rows, documents, out_documents, j * dilation, total - start) for j, rows in enumerate(by_tap)]
    return sum(taps[1:], taps[0])


def _real_positions_first(real: Bool[Array, "*B T"]) -> tuple[Int[Array, "*B T"], Int[Array, "*B T"]]:
    """The permutation that moves real positions first, in order: the source of each place, and the inverse."""
    padding = ~real
    count = real.sum(-1, keepdims=True, dtype=jnp.int32)
    to = jnp.where(real, real.cumsum(-1, dtype=jnp.int32), count + padding.cumsum(-1, dtype=jnp.int32)) - 1
    return jnp.argsort(padding, axis=-1, stable=True).astype(jnp.int32), to


def _count_documents(segment_ids: SegmentIds, source: Int[Array, "*B T"], before: int) -> Int[Array, "*B S"]:
    """Documents counted from 0, real positions first; the ``before`` inputs ahead of them belong to the first."""
    starts = segments.starts(segment_ids).cumsum(-1, dtype=jnp.int32)
    documents = jnp.take_along_axis(starts, source, axis=-1)
    return jnp.pad(documents, [(0, 0)] * (documents.ndim - 1) + [(before, 0)])


def _last(
    seen: Float[Array, "*B S D"], documents: Int[Array, "*B S"], count: Int[Array, "*B"], size: int
) -> Float[Array, "*B P D"]:
    """The ``size`` inputs up to the ``count``-th new one that are of its document, zeros before it."""
    if size == 0:
        return seen[..., :0, :]

    def last(seen: Array, documents: Array, count: Array) -> Array:
        tail = lax.dynamic_slice_in_dim(seen, count, size)
        ids = lax.dynamic_slice_in_dim(documents, count, size)
        return jnp.where((ids == ids[-1:])[:, None], tail, jnp.zeros_like(tail))

    return _map_over_batch(last, count.ndim)(seen, documents, count)


def _map_over_batch(function: Callable, rank: int) -> Callable:
    for _ in range(rank):
        function = jax.vmap(function)
    return function
