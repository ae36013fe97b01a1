"""Loops over the window of pixels or samples that the bins of one box read, as long as this box needs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array


def over_window(
    counts: tuple[Array, Array],
    group: tuple[int, int],
    step: Callable[[Any, list[tuple[Array, Array]]], Any],
    carry: Any,
) -> Any:
    """``carry = step(carry, pairs)`` for all (row, column) below ``counts``, in groups; the last may go beyond.

    With a group of one row, the order is row after row. Reverse mode does not pass through these loops.
    """

    def line(i: Array, carry: Any) -> Any:
        def some(j: Array, carry: Any) -> Any:
            pairs = [(i * group[0] + v, j * group[1] + u) for v in range(group[0]) for u in range(group[1])]
            return step(carry, pairs)

        return lax.fori_loop(0, (counts[1] + group[1] - 1) // group[1], some, carry)

    return lax.fori_loop(0, (counts[0] + group[0] - 1) // group[0], line, carry)


def places_in_map(rows: Array, columns: Array, width: int) -> Array:
    """The numbers ``[..., h, w]`` of pixels in scan order, from their rows ``[..., h]`` and columns ``[..., w]``."""
    return rows[..., :, None] * width + columns[..., None, :]


def read(flat: Array, places: Array) -> Array:
    """The channels of pixels of a map ``[Y · X, F]``."""
    return flat.at[places].get(mode="promise_in_bounds")


def add(total: Array, places: Sequence[Array], parts: Sequence[Array]) -> Array:
    """A map ``[Y · X, F]`` with ``parts`` ``[h, w, F]`` added at places ``[h, w]``."""
    updates = jnp.stack(list(parts)).reshape(-1, total.shape[-1])
    return total.at[jnp.stack(list(places)).reshape(-1)].add(updates, mode="promise_in_bounds")
