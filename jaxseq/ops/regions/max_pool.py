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
from jaxseq.ops.regions.windows import over_window, places_in_map, read
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

Edges = tuple[Array, Array, Array, Array]
"""First and past-the-last row ``[B, R, h]``, first and past-the-last column ``[B, R, w]``."""

_GROUP = 2, 2
"""Rows and columns of a window in one step of the loop over it."""


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
    features = primals[0]
    fixed = lax.stop_gradient(primals)
    value = batched_call(_values, None, Operands(None, fixed, ())).rows
    place = batched_call(_first_places, None, Operands(None, (*fixed, value), ())).rows
    select = LinearMap(_select, _select_back, (features.shape[1:], features.dtype))
    return known_result(select, (place,), features, value), select((place,), tangents[0])


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


def _first_places(_: None, operands: Operands) -> Operands:
    """The place of the first maximum of each bin and channel in scan order; -1 where the bin is empty."""
    features, edges, maxima = operands.rows

    def image(xs: tuple[Array, tuple[Array, ...], Array]) -> Array:
        flat, width = xs[0].reshape(-1, xs[0].shape[-1]), xs[0].shape[1]
        none = flat.shape[0]

        def box(xs: tuple[tuple[Array, ...], Array]) -> Array:
            edges, best = xs

            def step(first: Array, pairs: list) -> Array:
                for pair in pairs:
                    places = _places(edges, pair, width)
                    here = jnp.where(read(flat, places) == best, places[..., None], none)
                    first = jnp.minimum(first, here)
                return first

            first = over_window(_counts(edges), _GROUP, step, jnp.full(best.shape, none, jnp.int32))
            return jnp.where(_is_full(edges) & (first < none), first, -1)

        return lax.map(box, xs[1:])

    return Operands(None, lax.map(image, (features, edges, maxima)), ())


def _select(static: Any, fixed: tuple[Array, ...], features: Array) -> Array:
    """The features at the places of the maxima, 0 where there is none."""
    place = fixed[0]
    flat = features.reshape(features.shape[0], -1)
    channels = jnp.arange(features.shape[-1], dtype=jnp.int32).reshape((1,) * (place.ndim - 1) + (-1,))
    index = (jnp.maximum(place, 0) * features.shape[-1] + channels).reshape(features.shape[0], -1)
    found = jnp.take_along_axis(flat, index, axis=1, mode="promise_in_bounds").reshape(place.shape)
    return jnp.where(place >= 0, found, 0)


def _select_back(static: Any, fixed: tuple[Array, ...], cotangent: Array) -> Array:
    """Adds each cotangent at the place of its maximum."""
    (height, width, channels), dtype = static
    wide = at_least_float32(dtype)
    numbers = jnp.arange(channels, dtype=jnp.int32)[None, None]

    def image(xs: tuple[Array, Array]) -> Array:
        def box(total: Array, xs: tuple[Array, Array]) -> tuple[Array, None]:
            place, given = xs
            index = jnp.where(place >= 0, place * channels + numbers, total.size)
            return total.at[index.reshape(-1)].add(given.reshape(-1).astype(wide), mode="drop"), None

        total = lax.scan(box, jnp.zeros(height * width * channels, wide), xs)[0]
        return total.reshape(height, width, channels).astype(dtype)

    return lax.map(image, (fixed[0], cotangent))
