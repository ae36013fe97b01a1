"""RoI max pooling: for each box, a loop over the window of its largest bin, all bins at once.

The place of the first maximum is found only where a derivative is asked for. The derivative is that of reading this
place.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.batched_primitive import Operands, batched_call
from jaxseq.ops.regions.interpolation import divided
from jaxseq.ops.regions.linear_map import LinearMap, known_result
from jaxseq.ops.regions.windows import add, over_window, places_in_map, read
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

Edges = tuple[Array, Array, Array, Array]
"""First and past-the-last row ``[B, R, h]``, first and past-the-last column ``[B, R, w]``."""

_GROUP = 1, 4
"""Rows and columns of a window in one step of the loop over it; one row, so that the order is the scan order."""


def bin_edges(
    low: Float[Array, "*B"], high: Float[Array, "*B"], bins: int, length: int, scale: float
) -> tuple[Array, Array]:
    """First and past-the-last pixel of each bin ``[*B, bins]``, within ``0 .. length``."""
    first = lax.round(low * scale)
    last = lax.round((high - 1) * scale)
    size = divided(jnp.maximum(last - first + 1, 1), bins)
    steps = jnp.arange(bins, dtype=low.dtype).reshape((1,) * low.ndim + (bins,))
    begin = jnp.clip(first[..., None] + jnp.floor(steps * size[..., None]), 0, length)
    end = jnp.clip(first[..., None] + jnp.ceil((steps + 1) * size[..., None]), 0, length)
    return begin.astype(jnp.int32), end.astype(jnp.int32)


@jax.jit
def max_pool(features: Float[Array, "B Y X F"], edges: Edges) -> Float[Array, "B R h w F"]:
    """The maximum over each bin, 0 for empty bins."""
    return _max_pool(features, edges)


@jax.custom_jvp
def _max_pool(features: Array, edges: Edges) -> Array:
    return batched_call(_values, None, Operands(None, (features, edges), ())).rows


@_max_pool.defjvp
def _max_pool_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    features, edges = primals
    value, place = batched_call(_first_maxima, None, Operands(None, lax.stop_gradient(primals), ())).rows
    select, fixed = LinearMap(_select, _select_back, (features.shape[1:], features.dtype)), (place, *edges)
    return known_result(select, fixed, features, value), select(fixed, tangents[0])


def _counts(edges: tuple[Array, ...]) -> tuple[Array, Array]:
    """Rows and columns of the largest bin of a box."""
    top, bottom, left, right = edges
    return (bottom - top).max(), (right - left).max()


def _places(edges: tuple[Array, ...], pair: tuple[Array, Array], width: int) -> Array:
    """Pixel ``pair`` of each bin in its map, ``[h, w]``; beyond the end of a bin, its last pixel."""
    rows, columns = (jnp.maximum(jnp.minimum(low + k, high - 1), 0) for low, high, k in _sides(edges, pair))
    return places_in_map(rows, columns, width)


def _sides(edges: tuple[Array, ...], pair: tuple[Array, Array]) -> list[tuple[Array, Array, Array]]:
    return [(edges[0], edges[1], pair[0]), (edges[2], edges[3], pair[1])]


def _is_full(edges: tuple[Array, ...]) -> Array:
    top, bottom, left, right = edges
    return ((bottom > top)[..., :, None] & (right > left)[..., None, :])[..., None]


def _values(_: None, operands: Operands) -> Operands:
    features, edges = operands.rows

    def image(xs: tuple[Array, tuple[Array, ...]]) -> Array:
        flat, width = xs[0].reshape(-1, xs[0].shape[-1]), xs[0].shape[1]

        def box(edges: tuple[Array, ...]) -> Array:
            def step(best: Array, pairs: list) -> Array:
                for pair in pairs:
                    best = jnp.maximum(best, read(flat, _places(edges, pair, width)))
                return best

            shape = edges[0].shape[0], edges[2].shape[0], flat.shape[-1]
            best = over_window(_counts(edges), _GROUP, step, jnp.full(shape, -jnp.inf, flat.dtype))
            return jnp.where(_is_full(edges), best, 0)

        return lax.map(box, xs[1])

    return Operands(None, lax.map(image, (features, edges)), ())


def _first_maxima(_: None, operands: Operands) -> Operands:
    """The maxima, and the place of the first in scan order for each bin and channel; -1 where the bin is empty."""
    features, edges = operands.rows

    def image(xs: tuple[Array, tuple[Array, ...]]) -> tuple[Array, Array]:
        flat, width = xs[0].reshape(-1, xs[0].shape[-1]), xs[0].shape[1]

        def box(edges: tuple[Array, ...]) -> tuple[Array, Array]:
            def step(carry: tuple[Array, Array], pairs: list) -> tuple[Array, Array]:
                best, first = carry
                for pair in pairs:
                    places = _places(edges, pair, width)
                    value = read(flat, places)
                    better = value > best
                    best, first = jnp.where(better, value, best), jnp.where(better, places[..., None], first)
                return best, first

            shape = edges[0].shape[0], edges[2].shape[0], flat.shape[-1]
            start = jnp.full(shape, -jnp.inf, flat.dtype), jnp.full(shape, -1, jnp.int32)
            best, first = over_window(_counts(edges), _GROUP, step, start)
            return jnp.where(_is_full(edges), best, 0), jnp.where(_is_full(edges), first, -1)

        return lax.map(box, xs[1])

    return Operands(None, lax.map(image, (features, edges)), ())


def _select(static: Any, fixed: tuple[Array, ...], features: Array) -> Array:
    """The features at the places of the maxima, 0 where there is none."""
    place = fixed[0]
    flat = features.reshape(features.shape[0], -1)
    channels = jnp.arange(features.shape[-1], dtype=jnp.int32).reshape((1,) * (place.ndim - 1) + (-1,))
    index = (jnp.maximum(place, 0) * features.shape[-1] + channels).reshape(features.shape[0], -1)
    found = jnp.take_along_axis(flat, index, axis=1, mode="promise_in_bounds").reshape(place.shape)
    return jnp.where(place >= 0, found, 0)


def _select_back(static: Any, fixed: tuple[Array, ...], cotangent: Array) -> Array:
    """Adds each cotangent at the place of its maximum: each pixel of the window gets its bins'."""
    (height, width, channels), dtype = static
    wide = at_least_float32(dtype)

    def image(xs: tuple[Array, ...]) -> Array:
        def box(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
            chosen, *edges, given = xs

            def step(total: Array, pairs: list) -> Array:
                places = [_places(tuple(edges), pair, width) for pair in pairs]
                inside = [_inside(tuple(edges), pair) for pair in pairs]
                parts = [
                    jnp.where((chosen == p[..., None]) & i[..., None], given, 0).astype(wide)
                    for p, i in zip(places, inside, strict=True)
                ]
                return add(total, places, parts)

            return over_window(_counts(tuple(edges)), _GROUP, step, total), None

        total = lax.scan(box, jnp.zeros((height * width, channels), wide), xs)[0]
        return total.reshape(height, width, channels).astype(dtype)

    return lax.map(image, (*fixed, cotangent))


def _inside(edges: tuple[Array, ...], pair: tuple[Array, Array]) -> Array:
    """Whether pixel ``pair`` of each bin exists, ``[h, w]``."""
    rows, columns = (low + k < high for low, high, k in _sides(edges, pair))
    return rows[:, None] & columns[None, :]
