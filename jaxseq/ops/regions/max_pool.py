"""RoI max pooling."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array, Bool, Float


def bin_edges(
    low: Float[Array, " R"], high: Float[Array, " R"], bins: int, length: int, scale: float
) -> tuple[Array, Array]:
    """First and past-the-last pixel of each bin ``[R, bins]``, within ``0 .. length``."""
    first = lax.round(low * scale)
    last = lax.round((high - 1) * scale)
    size = jnp.maximum(last - first + 1, 1)[:, None] / lax.optimization_barrier(jnp.asarray(bins, low.dtype))
    steps = jnp.arange(bins, dtype=low.dtype)[None]
    begin = jnp.clip(first[:, None] + jnp.floor(steps * size), 0, length)
    end = jnp.clip(first[:, None] + jnp.ceil((steps + 1) * size), 0, length)
    return begin.astype(jnp.int32), end.astype(jnp.int32)


def pool_masked(
    features: Float[Array, "Y X F"], rows: tuple[Array, Array], columns: tuple[Array, Array]
) -> Float[Array, "R h w F"]:
    """The maximum over each bin, by masks over one axis, then over the other."""

    def one(edges: tuple[Array, ...]) -> Array:
        in_row = _mask(edges[0], edges[1], features.shape[0])
        in_column = _mask(edges[2], edges[3], features.shape[1])
        some = jnp.where(in_row[:, :, None, None], features[None], -jnp.inf).max(1)
        out = jnp.where(in_column[None, :, :, None], some[:, None], -jnp.inf).max(2)
        full = (edges[1] > edges[0])[:, None] & (edges[3] > edges[2])[None]
        return jnp.where(full[..., None], out, 0)

    return lax.map(one, (*rows, *columns))


def _mask(begin: Array, end: Array, length: int) -> Bool[Array, "bins length"]:
    pixels = jnp.arange(length, dtype=jnp.int32)
    return jax.vmap(lambda b, e: (pixels >= b) & (pixels < e))(begin, end)
