"""Validity of ids: the indices of the rows of a table (tokens, targets, positions).

Outside ``jit`` an id that is out of range raises an error. Under a transformation its value is unknown, and results
computed from it are NaN, as in ``flax.linen.Embed`` and ``optax``; indexing alone would clip or wrap it silently.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.typing import Array, Bool, Float, Integer


def check_ids(
    what: str,
    ids: Integer[Array | np.ndarray, "..."],
    size: int,
    real: Bool[Array | np.ndarray, "..."] | None = None,
) -> None:
    """Check that ids are in [0, size). Traced ids, and arrays of which other processes hold parts, are not checked.

    Args:
        what: the name of the ids in the message ("tokens").
        ids: any shape.
        size: the number of rows of the table.
        real: broadcast against the ids; those where it is False (padding) are not checked.

    Raises:
        ValueError: names the first id that is out of range, its index, and the range.
    """
    if any(isinstance(x, jax.Array) and not _is_readable(x) for x in (ids, real)):
        return
    values = np.asarray(ids)
    wrong = (values < 0) | (values >= size)
    if real is not None:
        wrong = wrong & np.asarray(real)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f" at index {index}" if index else ""
        raise ValueError(f"{what}: id {values[index]}{place} is outside [0, {size})")


def valid_ids(ids: Integer[Array, "..."], size: int) -> Bool[Array, "..."]:
    """Whether each id is in [0, size)."""
    largest = max(min(size - 1, jnp.iinfo(ids.dtype).max), 0)  # a size that the dtype cannot hold would wrap
    return (ids >= 0) & (ids <= largest) & (size > 0)


def nan_where_invalid(values: Float[Array, "..."], ids: Integer[Array, "..."], size: int) -> Float[Array, "..."]:
    """The values, whose leading dimensions are those of the ids, with NaN where an id is outside [0, size)."""
    valid = valid_ids(ids, size)
    valid = valid.reshape(*valid.shape, *(1,) * (values.ndim - valid.ndim))
    return jnp.where(valid, values, jnp.asarray(jnp.nan, values.dtype))


def _is_readable(x: jax.Array) -> bool:
    return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
