"""RoI align with the maximum of samples: for each box, a loop over the samples of a bin, all bins at once.

The number of the first maximum is found only where a derivative is asked for. The derivative is that of this sample.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.batched_primitive import Operands, batched_call
from jaxseq.ops.regions.interpolation import bin_starts
from jaxseq.ops.regions.linear_map import LinearMap, known_result
from jaxseq.ops.regions.windows import add, over_window, places_in_map, read
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

_GROUP = 1, 2
_COLUMNS = 2**15
"""More than the samples that a bin may have in a row."""


class _Samples(NamedTuple):
    """The samples of a box along one axis."""

    begin: Array
    """The start of each bin, ``[bins]``."""
    step: Array
    """The size of a bin."""
    number: Array
    """Samples of a bin."""
    first: Array
    """The first sample of each bin that may be inside of the map, ``[bins]``."""
    trips: Array
    """The number of samples to look at from there."""
    outside: Array
    """Whether other samples of the bin lie outside of the map, and count as 0; ``[bins]``."""


@partial(jax.jit, static_argnames=("bins", "sampling_ratio"))
def align_max(
    features: Float[Array, "B Y X F"],
    starts: Float[Array, "B R 2"],
    sizes: Float[Array, "B R 2"],
    empty: Array,
    bins: tuple[int, int],
    sampling_ratio: int | None,
) -> Float[Array, "B R h w F"]:
    """The maximum over samples for each bin of each box; boxes in coordinates of the map."""
    rows = _samples(starts[..., 1], sizes[..., 1], bins[0], features.shape[1], sampling_ratio)
    columns = _samples(starts[..., 0], sizes[..., 0], bins[1], features.shape[2], sampling_ratio)
    return jnp.where(empty[..., None, None, None], 0, _align(features, (*rows, *columns)))


def _samples(starts: Array, sizes: Array, bins: int, length: int, sampling_ratio: int | None) -> _Samples:
    begin, step = bin_starts(starts, sizes, bins)
    if sampling_ratio is not None:
        count, none = jnp.full_like(step, sampling_ratio), jnp.zeros_like(begin)
        return _Samples(begin, step, count, none, jnp.full(step.shape, sampling_ratio, jnp.int32), none > 0)
    count = jnp.maximum(jnp.ceil(step), 1)
    spacing = jnp.where(step > 0, step / count, 1)[..., None]
    first = jnp.clip(jnp.floor((-1 - begin) / spacing - 0.5), 0, count[..., None])
    end = begin + (count - 0.5)[..., None] * spacing
    outside = (begin + 0.5 * spacing < -1) | (end > length)
    trips = jnp.clip(count[..., None] - first, 0, length + 5).max(-1).astype(jnp.int32)
    return _Samples(begin, step, count, first, trips, outside)


@jax.custom_jvp
def _align(features: Array, samples: tuple[Array, ...]) -> Array:
    return batched_call(_values, None, Operands(None, (features, samples), ())).rows[0]


@_align.defjvp
def _align_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    features, samples = primals
    value, chosen = batched_call(_values, None, Operands(None, lax.stop_gradient(primals), ())).rows
    select, fixed = LinearMap(_select, _select_back, (features.shape[1:], features.dtype)), (chosen, *samples)
    return known_result(select, fixed, features, value), select(fixed, tangents[0])


class _Corners(NamedTuple):
    """A sample of each bin: four places ``[h, w]`` and weights, whether it exists, and its number in the loop."""

    places: list[Array]
    weights: list[Array]
    exists: Array
    number: Array


def _corners(samples: tuple[Array, ...], pair: tuple[Array, Array], shape: tuple[int, ...]) -> _Corners:
    lines = []
    for axis, k, length in ((samples[:6], pair[0], shape[0]), (samples[6:], pair[1], shape[1])):
        begin, step, count, first, trips, _ = axis
        sample = first + k.astype(first.dtype)
        place = begin + (sample + 0.5) * step / count
        inside = (place >= -1) & (place <= length)
        clipped = jnp.clip(place, 0, length - 1)
        low = jnp.floor(clipped)
        pixels = [p.astype(jnp.int32) for p in (low, jnp.minimum(low + 1, length - 1))]
        weights = [jnp.where(inside, w, 0) for w in (1 - (clipped - low), clipped - low)]
        lines.append((pixels, weights, (sample < count) & (k < trips)))
    (ys, ws_y, row), (xs, ws_x, column) = lines
    places = [places_in_map(y, x, shape[1]) for y in ys for x in xs]
    weights = [a[:, None] * b[None, :] for a in ws_y for b in ws_x]
    return _Corners(places, weights, (row[:, None] & column[None, :])[..., None], pair[0] * _COLUMNS + pair[1])


def _value(flat: Array, corners: _Corners, dtype: Any) -> Array:
    parts = [
        w[..., None].astype(dtype) * read(flat, p).astype(dtype)
        for p, w in zip(corners.places, corners.weights, strict=True)
    ]
    return parts[0] + parts[1] + parts[2] + parts[3]


def _values(_: None, operands: Operands) -> Operands:
    """The maxima, and the numbers of the first samples that have them (-1: one outside of the map)."""
    features, samples = operands.rows
    wide = at_least_float32(features.dtype)

    def image(xs: tuple[Array, tuple[Array, ...]]) -> tuple[Array, Array]:
        flat, shape = xs[0].reshape(-1, xs[0].shape[-1]), xs[0].shape

        def box(samples: tuple[Array, ...]) -> tuple[Array, Array]:
            def step(carry: tuple[Array, Array], pairs: list) -> tuple[Array, Array]:
                best, chosen = carry
                for pair in pairs:
                    corners = _corners(samples, pair, shape)
                    value = _value(flat, corners, wide)
                    better = corners.exists & ((value > best) | jnp.isnan(value))
                    best, chosen = jnp.where(better, value, best), jnp.where(better, corners.number, chosen)
                return best, chosen

            outside = (samples[5][:, None] | samples[11][None, :])[..., None]
            size = (*outside.shape[:2], shape[-1])
            best = jnp.broadcast_to(jnp.where(outside, jnp.zeros((), wide), -jnp.inf), size)
            start = best, jnp.full(size, -1, jnp.int32)
            return over_window((samples[4], samples[10]), _GROUP, step, start)

        return lax.map(box, xs[1])

    best, chosen = lax.map(image, (features, samples))
    return Operands(None, (best.astype(features.dtype), chosen), ())


def _select(static: Any, fixed: tuple[Array, ...], features: Array) -> Array:
    (shape, dtype), wide = static, at_least_float32(static[1])

    def image(xs: tuple[Array, ...]) -> Array:
        flat = xs[-1].reshape(-1, shape[-1])

        def box(xs: tuple[Array, ...]) -> Array:
            chosen, *samples = xs

            def step(total: Array, pairs: list) -> Array:
                for pair in pairs:
                    corners = _corners(tuple(samples), pair, shape)
                    mine = corners.exists & (chosen == corners.number)
                    total = total + jnp.where(mine, _value(flat, corners, wide), 0)
                return total

            return over_window((samples[4], samples[10]), _GROUP, step, jnp.zeros(chosen.shape, wide)).astype(dtype)

        return lax.map(box, xs[:-1])

    return lax.map(image, (*fixed, features))


def _select_back(static: Any, fixed: tuple[Array, ...], cotangent: Array) -> Array:
    (shape, dtype), wide = static, at_least_float32(static[1])

    def image(xs: tuple[Array, ...]) -> Array:
        def box(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
            chosen, *samples, given = xs

            def step(total: Array, pairs: list) -> Array:
                for pair in pairs:
                    corners = _corners(tuple(samples), pair, shape)
                    mine = jnp.where(corners.exists & (chosen == corners.number), given, 0).astype(wide)
                    parts = [w[..., None].astype(wide) * mine for w in corners.weights]
                    total = add(total, corners.places, parts)
                return total

            return over_window((samples[4], samples[10]), _GROUP, step, total), None

        total = lax.scan(box, jnp.zeros((shape[0] * shape[1], shape[2]), wide), xs)[0]
        return total.reshape(shape).astype(dtype)

    return lax.map(image, (*fixed, cotangent))
