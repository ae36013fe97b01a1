"""Shared parts of the chunkwise implementations: a scan over chunks of time, and the size of a chunk."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxseq.ops import segments
from jaxseq.ops.batch_shards import Split, by_batch_shard, tensor_shards, vary_alike
from jaxseq.typing import Array, Float, SegmentIds


def scan_chunks(
    body: Callable, state: Float[Array, "*B N H Hv"], arrays: list[Array], segment_ids: SegmentIds | None, size: int
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``state, out = body(state, (*arrays, document, before))`` along chunks of ``size``.

    Arrays ``[*B, T, N, ...]`` come as ``[*B, N, C, ...]``; the last chunk is padded with zeros. ``document`` counts
    documents, ``[*B, 1, C]``; the state belongs to document ``before``, ``[*B, 1, 1]``. The reverse pass recomputes
    each chunk from its inputs and the state before it, which are all that is stored.
    """

    def run(_: None, rows: tuple[Array, list[Array], SegmentIds | None]) -> tuple[Array, Array]:
        state, arrays, segment_ids = vary_alike(rows)
        return _scan_chunks(body, state, arrays, segment_ids, size)

    batch = state.shape[:-3]
    split = None
    if batch and tensor_shards(state.shape[-3]) > 1:  # heads do not mix
        before: tuple[None, ...] = (None,) * (len(batch) - 1)
        of_state, of_arrays = PartitionSpec(*before, "tensor"), PartitionSpec(*before, None, "tensor")
        split = Split(None, (of_state, of_arrays, PartitionSpec()), (of_state, of_arrays))
    return by_batch_shard(run, None, (state, arrays, segment_ids), batch=batch, split=split, replicate=True)


def _scan_chunks(
    body: Callable, state: Array, arrays: list[Array], segment_ids: SegmentIds | None, size: int
) -> tuple[Array, Array]:
    batch = state.ndim - 3
    time = arrays[0].shape[batch]
    if segment_ids is None:
        document = jnp.zeros((*(1 for _ in range(batch)), time), jnp.int32)
    else:
        document = jnp.cumsum(segments.starts(segment_ids), -1, dtype=jnp.int32)

    def by_chunk(array: Array, mode: str = "constant") -> Array:
        filled = [(0, -time % size if axis == batch else 0) for axis in range(array.ndim)]
        array = jnp.pad(array, filled, mode=mode)
        array = array.reshape(*array.shape[:batch], -(-time // size), size, *array.shape[batch + 1 :])
        return jnp.transpose(array, (batch, *range(batch), batch + 2, batch + 1, *range(batch + 3, array.ndim)))

    document = by_chunk(document[..., None], "edge")
    before = jnp.concatenate([jnp.zeros_like(document[:1, ..., -1:]), document[:-1, ..., -1:]])
    state, out = lax.scan(jax.checkpoint(body, prevent_cse=False), state, (*map(by_chunk, arrays), document, before))
    out = jnp.transpose(out, (*range(1, batch + 1), 0, batch + 2, batch + 1, batch + 3))
    out = out.reshape(*out.shape[:batch], out.shape[batch] * size, *out.shape[batch + 2 :])
    return state, lax.slice_in_dim(out, 0, time, axis=batch)


def chunk_size(chunk: int | None, default: int, time: int) -> int:
    """``chunk`` (``default`` if None), but no more than the next power of two from the sequence's length."""
    return min(chunk or default, 1 << (time - 1).bit_length())
