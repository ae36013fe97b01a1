"""What ``segment_ids`` mean, said once: where a document begins, what is padding, which id comes last.

Ids are whole numbers; 0 is padding. A document begins where a real position's id differs from that of the real
position before it; padding between them is as if it were not there. The first real position of a call continues
the state it is given (whoever carries a state over a cut compares ids there: ``first_id``).
"""

import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array, Bool, Float, Int


def is_real(segment_ids: Int[Array, "*B T"]) -> Bool[Array, "*B T"]:
    """True where a position is not padding."""
    return segment_ids != 0


def previous_ids(segment_ids: Int[Array, "*B T"], before: Int[Array, "*B"]) -> Int[Array, "*B T"]:
    """The id of the last real position strictly before each one; ``before`` is that of the first."""
    ids = jnp.concatenate([before[..., None].astype(segment_ids.dtype), segment_ids], axis=-1)
    time = jnp.broadcast_to(jnp.arange(ids.shape[-1]), ids.shape)
    latest = lax.cummax(jnp.where(ids != 0, time, 0), axis=ids.ndim - 1)
    return jnp.take_along_axis(ids, latest, axis=-1)[..., :-1]


def starts(segment_ids: Int[Array, "*B T"], before: Int[Array, "*B"]) -> Bool[Array, "*B T"]:
    """True where a document begins afresh; nothing does behind an id of 0 (nothing seen yet)."""
    previous = previous_ids(segment_ids, before)
    return is_real(segment_ids) & (previous != 0) & (segment_ids != previous)


def last_id(segment_ids: Int[Array, "*B T"], before: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """The id of the last real position, ``before`` where there is none."""
    ended = jnp.pad(segment_ids, [(0, 0)] * (segment_ids.ndim - 1) + [(0, 1)])
    return previous_ids(ended, before)[..., -1]


def first_id(segment_ids: Int[Array, "*B T"]) -> Int[Array, "*B"]:
    """The id of the first real position, 0 where there is none."""
    if segment_ids.shape[-1] == 0:
        return jnp.zeros(segment_ids.shape[:-1], segment_ids.dtype)
    where = jnp.argmax(is_real(segment_ids), axis=-1)
    return jnp.take_along_axis(segment_ids, where[..., None], axis=-1)[..., 0]


def no_ids(segment_ids: Int[Array, "*B T"]) -> Int[Array, "*B"]:
    """What stands before a sequence that nothing precedes."""
    return jnp.zeros(segment_ids.shape[:-1], segment_ids.dtype)


def check(segment_ids: Array | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError where ids are not of the shape ``[*B, T]`` of what they belong to."""
    if segment_ids is not None and segment_ids.shape != shape:
        raise ValueError(f"segment_ids of shape {segment_ids.shape} do not fit inputs of [*B, T] = {shape}")


def without_padding(xs: Float[Array, "*B T D"], segment_ids: Int[Array, "*B T"] | None) -> Float[Array, "*B T D"]:
    """Zeros at padding, whatever stood there (masking only what comes out gives NaN parameter gradients)."""
    if segment_ids is None:
        return xs
    return jnp.where(is_real(segment_ids)[..., None], xs, jnp.zeros_like(xs))
