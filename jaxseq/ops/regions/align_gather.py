"""RoI align with the mean of samples, as weighted sums of pixels: channels are gathered, and scattered backward.

A bin reads the pixels under its window. Where every bin has the same few samples, its reads are unrolled into one fused
loop over the result. Otherwise there is a loop over boxes, and inside it one over the window of the box, as long as it
needs to be.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.regions.interpolation import align_weights, bin_starts
from jaxseq.ops.regions.linear_map import LinearMap
from jaxseq.ops.regions.windows import add, over_window, places_in_map, read
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

_UNROLLED = 2
"""The most samples a bin and axis whose reads are unrolled: (2 · 2)² of them."""
_BOXES = 8
"""Boxes whose reads are scattered at once."""
_GROUP = 2, 4
"""Rows and columns of a window in one step of the loop over it."""


class _Static(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any


@partial(jax.jit, static_argnames=("bins", "sampling_ratio"))
def align_gather(
    features: Float[Array, "B Y X F"],
    starts: Float[Array, "B R 2"],
    sizes: Float[Array, "B R 2"],
    empty: Array,
    bins: tuple[int, int],
    sampling_ratio: int | None,
) -> Float[Array, "B R h w F"]:
    """The mean over samples for each bin of each box; boxes in coordinates of the map."""
    static = _Static(features.shape, features.dtype)
    axes = [(i, n, features.shape[1 + place]) for place, (i, n) in enumerate(zip((1, 0), bins, strict=True))]
    if sampling_ratio is not None and sampling_ratio <= _UNROLLED:
        taps = [_taps(starts[..., i], sizes[..., i], n, length, sampling_ratio) for i, n, length in axes]
        rows = taps[0][0], jnp.where(empty[..., None, None], 0, taps[0][1])
        return LinearMap(_unrolled, _unrolled_back, static)((*rows, *taps[1]), features)
    windows = []
    for i, n, length in axes:
        weights = align_weights(starts[..., i], sizes[..., i], n, length, sampling_ratio)
        weights = jnp.where(empty[..., None, None], 0, weights) if i == 1 else weights
        windows += [weights, *_window(weights)]
    return LinearMap(_windowed, _windowed_back, static)(tuple(windows), features)


def _taps(starts: Array, sizes: Array, bins: int, length: int, samples: int) -> tuple[Array, Array]:
    """The two pixels and weights of each sample, ``[B, R, bins, 2 · samples]``."""
    begin, step = bin_starts(starts, sizes, bins)
    within = (jnp.arange(samples, dtype=starts.dtype) + 0.5)[None, None, None]
    places = begin[..., None] + within * step[..., None, None] / samples
    inside = (places >= -1) & (places <= length)
    clipped = jnp.clip(places, 0, length - 1)
    low = jnp.floor(clipped)
    high = clipped - low
    weights = jnp.where(inside[..., None], jnp.stack([1 - high, high], axis=-1) / samples, 0)
    pixels = jnp.stack([low, jnp.minimum(low + 1, length - 1)], axis=-1).astype(jnp.int32)
    shape = (*places.shape[:-1], 2 * samples)
    return pixels.reshape(shape), weights.reshape(shape)


def _window(weights: Array) -> tuple[Array, Array]:
    """The first pixel with a weight of each bin ``[B, R, bins]``, and the longest window of each box ``[B, R]``."""
    used = weights > 0
    begin = jnp.argmax(used, axis=-1).astype(jnp.int32)
    end = weights.shape[-1] - jnp.argmax(used[..., ::-1], axis=-1).astype(jnp.int32)
    return begin, jnp.where(used.any(-1), end - begin, 0).max(-1)


def _pairs(shape: tuple[int, ...], rows: tuple[Array, Array], columns: tuple[Array, Array]) -> tuple[Array, Array]:
    """Places in the flat maps and weights of one tap of each bin: ``[..., h, w]`` of ``[..., h]`` and ``[..., w]``."""
    places = places_in_map(rows[0], columns[0], shape[2])
    return places, rows[1][..., :, None] * columns[1][..., None, :]


def _unrolled(static: _Static, fixed: tuple[Array, ...], features: Array) -> Array:
    pixels_y, weights_y, pixels_x, weights_x = fixed
    wide = at_least_float32(static.dtype)
    flat = features.reshape(-1, features.shape[-1])
    base = jnp.arange(features.shape[0], dtype=jnp.int32)[:, None, None, None] * (static.shape[1] * static.shape[2])
    total = jnp.zeros((*pixels_y.shape[:3], pixels_x.shape[2], features.shape[-1]), wide)
    for i in range(pixels_y.shape[-1]):
        for j in range(pixels_x.shape[-1]):
            rows, columns = (pixels_y[..., i], weights_y[..., i]), (pixels_x[..., j], weights_x[..., j])
            places, weights = _pairs(static.shape, rows, columns)
            total = total + weights[..., None].astype(wide) * read(flat, base + places).astype(wide)
    return total.astype(static.dtype)


def _unrolled_back(static: _Static, fixed: tuple[Array, ...], cotangent: Array) -> Array:
    batch, height, width, channels = cotangent.shape[0], *static.shape[1:]
    wide = at_least_float32(static.dtype)

    def scatter(total: Array, xs: tuple[Array, ...]) -> Array:
        (pixels_y, weights_y, pixels_x, weights_x), given = xs[:4], xs[4]
        places = pixels_y[:, :, None, :, None] * width + pixels_x[:, None, :, None, :]
        weights = (weights_y[:, :, None, :, None] * weights_x[:, None, :, None, :]).astype(wide)
        parts = weights[..., None] * given[:, :, :, None, None].astype(wide)
        return total.at[places.reshape(-1)].add(parts.reshape(-1, channels), mode="promise_in_bounds")

    def image(xs: tuple[Array, ...]) -> Array:
        total = _in_chunks(scatter, jnp.zeros((height * width, channels), wide), xs, _BOXES)
        return total.reshape(height, width, channels).astype(static.dtype)

    return lax.map(image, (*fixed, cotangent)) if batch else jnp.zeros((0, *static.shape[1:]), static.dtype)


def _in_chunks(scatter: Callable[..., Array], total: Array, xs: tuple[Array, ...], chunk: int) -> Array:
    """``scatter(total, x)`` for all parts of ``chunk`` rows of ``xs``, and for the rest."""
    whole, rest = divmod(xs[0].shape[0], chunk)
    parts = jax.tree.map(lambda x: x[: whole * chunk].reshape(whole, chunk, *x.shape[1:]), xs)
    total = lax.scan(lambda total, x: (scatter(total, x), None), total, parts)[0]
    return scatter(total, jax.tree.map(lambda x: x[whole * chunk :], xs)) if rest else total


def _tap(weights: Array, begin: Array, k: Array) -> tuple[Array, Array]:
    """Pixel k of the window of each bin and its weight, ``[bins]``."""
    pixel = begin + k
    inside = pixel < weights.shape[-1]
    pixel = jnp.where(inside, pixel, 0)
    weight = jnp.take_along_axis(weights, pixel[:, None], axis=-1, mode="promise_in_bounds")[:, 0]
    return pixel, jnp.where(inside, weight, 0)


def _taps_of_window(fixed: tuple[Array, ...], shape: tuple[int, ...], pairs: list) -> list[tuple[Array, Array]]:
    """Places and weights of the pixels ``pairs`` of the window of each bin of a box."""
    weights_y, begin_y, _, weights_x, begin_x, _ = fixed
    return [_pairs(shape, _tap(weights_y, begin_y, i), _tap(weights_x, begin_x, j)) for i, j in pairs]


def _windowed(static: _Static, fixed: tuple[Array, ...], features: Array) -> Array:
    wide, channels = at_least_float32(static.dtype), features.shape[-1]
    bins = fixed[0].shape[2], fixed[3].shape[2]

    def image(xs: tuple[Array, ...]) -> Array:
        flat = xs[-1].reshape(-1, channels)

        def box(fixed: tuple[Array, ...]) -> Array:
            def step(total: Array, pairs: list[tuple[Array, Array]]) -> Array:
                for places, weights in _taps_of_window(fixed, static.shape, pairs):
                    total = total + weights[..., None].astype(wide) * read(flat, places).astype(wide)
                return total

            total = over_window((fixed[2], fixed[5]), _GROUP, step, jnp.zeros((*bins, channels), wide))
            return total.astype(static.dtype)

        return lax.map(box, xs[:-1])

    return lax.map(image, (*fixed, features))


def _windowed_back(static: _Static, fixed: tuple[Array, ...], cotangent: Array) -> Array:
    height, width, channels = static.shape[1:]
    wide = at_least_float32(static.dtype)

    def image(xs: tuple[Array, ...]) -> Array:
        def box(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
            given = xs[-1].astype(wide)

            def step(total: Array, pairs: list[tuple[Array, Array]]) -> Array:
                taps = _taps_of_window(xs[:-1], static.shape, pairs)
                return add(total, [p for p, _ in taps], [w[..., None].astype(wide) * given for _, w in taps])

            return over_window((xs[2], xs[5]), _GROUP, step, total), None

        total = lax.scan(box, jnp.zeros((height * width, channels), wide), xs)[0]
        return total.reshape(height, width, channels).astype(static.dtype)

    return lax.map(image, (*fixed, cotangent))
