"""Segment ids: where documents start, which positions are padding, and how a state follows them.

Ids are integers; 0 is padding. A document starts where the id of a real position differs from that of the last real
position before it; padded positions in between are ignored. The first real position of a call continues the given
state. A caller that carries a state from call to call compares ids there itself (``first_id``, ``last_id``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.batch_shards import partitioned_by_xla
from jaxseq.typing import Array, Bool, DType, Inexact, Int, SegmentIds


class SegmentMasks(NamedTuple):
    """The two masks of segment ids ``[*B, T]``; both None without ids."""

    start: Bool[Array, "*B T"] | None
    """True where a document starts."""
    real: Bool[Array, "*B T"] | None
    """True where a position is not padding."""


def is_real(segment_ids: Int[Array, "*B T"]) -> Bool[Array, "*B T"]:
    """True where a position is not padding."""
    return segment_ids != 0


@partitioned_by_xla
def previous_ids(segment_ids: Int[Array, "*B T"], before: Int[Array, "*B"] | None = None) -> Int[Array, "*B T"]:
    """The id of the last real position strictly before each position.

    ``before`` is the id that precedes the sequence; 0 (the default) means that nothing does.
    """
    segment_ids = jnp.asarray(segment_ids)
    if before is None:
        before = jnp.zeros(segment_ids.shape[:-1], segment_ids.dtype)
    before = before[..., None].astype(segment_ids.dtype)
    if segment_ids.shape[-1] == 1:  # a decoding step
        return before
    ids = jnp.concatenate([before, segment_ids], axis=-1)
    time = jnp.broadcast_to(jnp.arange(ids.shape[-1]), ids.shape)
    latest = lax.cummax(jnp.where(ids != 0, time, 0), axis=ids.ndim - 1)
    return jnp.take_along_axis(ids, latest, axis=-1)[..., :-1]


def starts(segment_ids: Int[Array, "*B T"], before: Int[Array, "*B"] | None = None) -> Bool[Array, "*B T"]:
    """True where a document starts. The first document after an id of 0 continues the state: it has no start."""
    previous = previous_ids(segment_ids, before)
    return is_real(segment_ids) & (previous != 0) & (segment_ids != previous)


def last_id(segment_ids: Int[Array, "*B T"], before: Int[Array, "*B"] | None = None) -> Int[Array, "*B"]:
    """The id of the last real position, ``before`` where there is none."""
    if segment_ids.shape[-1] == 1 and before is not None:  # a decoding step
        last = segment_ids[..., 0]
    else:
        time = jnp.broadcast_to(jnp.arange(segment_ids.shape[-1]), segment_ids.shape)
        last = _id_at(segment_ids, jnp.where(is_real(segment_ids), time, -1).max(-1, initial=-1))
    return last if before is None else jnp.where(last != 0, last, before.astype(last.dtype))


def first_id(segment_ids: Int[Array, "*B T"]) -> Int[Array, "*B"]:
    """The id of the first real position, 0 where there is none."""
    if segment_ids.shape[-1] == 1:
        return segment_ids[..., 0]
    steps = segment_ids.shape[-1]
    time = jnp.broadcast_to(jnp.arange(steps), segment_ids.shape)
    return _id_at(segment_ids, jnp.where(is_real(segment_ids), time, steps).min(-1, initial=steps))


def _id_at(segment_ids: Int[Array, "*B T"], index: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """The id at an index, 0 outside. A sum, of which devices that share the positions exchange one number a row."""
    time = jnp.broadcast_to(jnp.arange(segment_ids.shape[-1]), segment_ids.shape)
    return jnp.where(time == index[..., None], segment_ids, 0).sum(-1, dtype=segment_ids.dtype)


def masks(segment_ids: Int[Array, "*B T"] | None) -> SegmentMasks:
    """Starts and real positions together."""
    if segment_ids is None:
        return SegmentMasks(None, None)
    return SegmentMasks(starts(segment_ids), is_real(segment_ids))


def check(name: str, segment_ids: Any, shape: tuple[int, ...], inputs: str = "inputs") -> None:
    """Check that segment ids, if there are any, are integers of the shape ``[*B, T]`` of what they belong to.

    Args:
        name: the function or module that is called, for the message ("LSTM").
        segment_ids: None, or an array.
        shape: ``[*B, T]``.
        inputs: what they belong to, for the message.

    Raises:
        ValueError: they have another shape or dtype.
    """
    if segment_ids is None:
        return
    found, dtype = jnp.shape(segment_ids), jnp.result_type(segment_ids)
    if found != shape or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"{name} needs integer segment_ids of shape [*B, T] = {shape} as its {inputs}, not {dtype}{found}"
        )


def count_positions(
    before: Int[Array, "*B"], shape: tuple[int, ...], segment_ids: SegmentIds | None
) -> tuple[Int[Array, "*B T"], Int[Array, "*B"]]:
    """The index of every position in its document, 0 at padding, and the count of positions after the input.

    Args:
        before: the number of positions of the first document that were read before the input.
        shape: ``[*B, T]``.
        segment_ids: None for one document without padding.
    """
    if segment_ids is None:
        order = jnp.broadcast_to(jnp.arange(shape[-1], dtype=before.dtype), shape)
        return before[..., None] + order, before + shape[-1]
    real = is_real(segment_ids)
    seen = jnp.cumsum(real, axis=-1, dtype=before.dtype)
    at_start = jnp.where(starts(segment_ids), seen - 1, -before[..., None])
    counts = seen - lax.cummax(at_start, axis=seen.ndim - 1)
    last = jnp.concatenate([before[..., None], counts], axis=-1)[..., -1]
    return jnp.where(real, counts - 1, jnp.zeros_like(counts)), last


def without_padding(xs: Inexact[Array, "..."], segment_ids: Int[Array, "*B T"] | None) -> Inexact[Array, "..."]:
    """``xs``, ``[*B, T, ...]``, with zeros at padded positions.

    Ops call it on entry: masking only the output would let NaN at padding reach parameter gradients (0 · NaN is NaN).
    """
    return xs if segment_ids is None else select(is_real(segment_ids), xs, jnp.zeros_like(xs))


def mask_and_cast(segment_ids: Int[Array, "*B T"] | None, dtype: DType, *arrays: Array) -> list[Array]:
    """The arrays in one dtype, with zeros at padded positions."""
    return [without_padding(array.astype(dtype), segment_ids) for array in arrays]


def reset(state: Any, start: Bool[Array, "..."] | None) -> Any:
    """The state with zeros where a document starts; leaves lead with the dimensions of ``start``."""
    return state if start is None else jax.tree.map(lambda s: select(start, jnp.zeros_like(s), s), state)


def hold(new: Any, old: Any, real: Bool[Array, "..."] | None) -> Any:
    """The new state at real positions, the old one at padded positions."""
    return new if real is None else jax.tree.map(lambda n, o: select(real, n, o), new, old)


def select(mask: Bool[Array, "..."], on_true: Array, on_false: Array) -> Array:
    """``jnp.where`` with a mask that lacks the arrays' trailing dimensions."""
    return jnp.where(jnp.expand_dims(mask, range(mask.ndim, on_true.ndim)), on_true, on_false)
