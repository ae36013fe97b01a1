"""The chunkwise form of linear attention: matrix products within a chunk, a scan over the states between chunks.

With ``g_i`` the sum of log decays from a document's first position in the chunk up to i, position i reads the key at j
by ``exp(g_i - g_j)`` where j is not later and of the same document. Sums restart with documents, so that nothing of one
document, not even a rounding error of a gradient, reaches another.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops import segments
from jaxseq.typing import Array, Bool, Float, Int, SegmentIds

BLOCK = 16
STEP = 1 / 1024
ROUNDING = 1.0
"""A logarithm of a decay is at most 0; one that is a difference (mlstm's stabiliser) is above it by a rounding."""


class Sums(NamedTuple):
    """Sums of log decays in two parts, the first exact, the second small: their differences lose nothing."""

    coarse: Float[Array, "..."]
    fine: Float[Array, "..."]

    def exp(self) -> Array:
        """``exp(self)``."""
        return jnp.exp(self.coarse + self.fine)

    def less(self, other: "Sums") -> Array:
        """``self - other``."""
        return (self.coarse - other.coarse) + (self.fine - other.fine)


def chunkwise(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    segment_ids: SegmentIds | None,
    size: int,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """Linear attention by chunks of ``size``, a power of two; all in one dtype, zeros at padding."""
    if log_decay.ndim < query.ndim:
        log_decay = log_decay[..., None]
    return scan_chunks(_chunk, state, [query, key, value, log_decay], segment_ids, size)


def scan_chunks(
    body: Callable, state: Float[Array, "*B N H Hv"], arrays: list[Array], segment_ids: SegmentIds | None, size: int
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """``state, out = body(state, (*arrays, number, before))`` along chunks of ``size``.

    Arrays ``[*B, T, N, ...]`` come as ``[*B, N, C, ...]``; what fills up the last chunk is zeros. ``number`` counts
    documents, ``[*B, 1, C]``; the state is of document ``before``, ``[*B, 1, 1]``. The reverse scan computes each chunk
    again from its inputs and the state before it, which alone are kept.
    """
    batch = state.ndim - 3
    time = arrays[0].shape[batch]
    if segment_ids is None:
        number = jnp.zeros((*(1 for _ in range(batch)), time), jnp.int32)
    else:
        number = jnp.cumsum(segments.starts(segment_ids, segments.no_ids(segment_ids)), -1, dtype=jnp.int32)

    def by_chunk(array: Array, mode: str = "constant") -> Array:
        filled = [(0, -time % size if axis == batch else 0) for axis in range(array.ndim)]
        array = jnp.pad(array, filled, mode=mode)
        array = array.reshape(*array.shape[:batch], -1, size, *array.shape[batch + 1 :])
        return jnp.transpose(array, (batch, *range(batch), batch + 2, batch + 1, *range(batch + 3, array.ndim)))

    number = by_chunk(number[..., None], "edge")
    before = jnp.concatenate([jnp.zeros_like(number[:1, ..., -1:]), number[:-1, ..., -1:]])
    state, out = lax.scan(jax.checkpoint(body, prevent_cse=False), state, (*map(by_chunk, arrays), number, before))
    out = jnp.transpose(out, (*range(1, batch + 1), 0, batch + 2, batch + 1, batch + 3))
    out = out.reshape(*out.shape[:batch], -1, *out.shape[batch + 2 :])
    return state, lax.slice_in_dim(out, 0, time, axis=batch)


def _chunk(
    state: Float[Array, "*B N H Hv"], at: tuple[Array, Array, Array, Array, Array, Array]
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B N C Hv"]]:
    """One chunk: the state after it, and its outputs."""
    q, k, v, log_decay, number, before = at
    last = number[..., -1:]
    continues, leaves, passes = ((a == b)[..., None] for a, b in ((number, before), (number, last), (last, before)))
    # A chunk depends on its sums as on exp(g_i) q_i, exp(-g_j) k_j and exp(g) times the state. So the exponentials
    # below are constants; three factors of 1 carry every derivative by the decays: q · dq - k · dk.
    moving = _sums(log_decay, number)
    sums = lax.stop_gradient(moving)
    change = moving.fine - sums.fine
    q, k = q * jnp.exp(change), k * jnp.exp(-change)
    end = Sums(*(part[..., -1:, :] for part in sums))
    inside = _by_head if log_decay.shape[-1] == 1 else _by_channel
    seen = jnp.where(continues, q * sums.exp(), 0)
    out = inside(q, k, v, sums, number) + jnp.where(continues, seen @ state, 0)
    kept = jnp.where(leaves, k * jnp.exp(jnp.minimum(end.less(sums), ROUNDING)), 0)
    faded = jnp.where(passes, state, 0) * jnp.swapaxes(end.exp(), -1, -2)
    state = faded + jnp.swapaxes(kept, -1, -2) @ v
    return state * jnp.exp(jnp.swapaxes(change[..., -1:, :], -1, -2)), out


def _sums(log_decay: Float[Array, "*B N C H"], number: Int[Array, "*#B 1 C"]) -> Sums:
    """Sums of log decays from a document's beginning.

    Decays whose exponential is 0 anyway are cut off, so that the first part, a multiple of 2^-10, fits its mantissa.
    """
    least = np.log(np.finfo(log_decay.dtype).smallest_subnormal) - 1
    log_decay = jnp.where(log_decay > least, log_decay, least)
    step = STEP * max(log_decay.shape[-2] // 128, 1)  # 128 · 104 · 1024 < 2^24
    coarse = lax.stop_gradient(jnp.round(log_decay / step) * step)
    # one matrix for every head: a shared one would turn the other factor round, and back in the reverse scan
    shape = (*log_decay.shape[:-1], log_decay.shape[-2])
    summing = jnp.broadcast_to(_visible(number), shape).astype(log_decay.dtype)
    return Sums(*(jnp.matmul(summing, part, precision="highest") for part in (coarse, log_decay - coarse)))


def _visible(number: Int[Array, "*B C"]) -> Bool[Array, "*B C C"]:
    """Which keys a query may read: not later, of the same document."""
    size = number.shape[-1]
    causal = np.tril(np.ones((size, size), bool))
    return (number[..., :, None] == number[..., None, :]) & jnp.broadcast_to(causal, (*number.shape, size))


def _by_head(q: Array, k: Array, v: Array, sums: Sums, number: Array) -> Array:
    """One decay a head: one matrix of decays a chunk."""
    to, since = (Sums(*(jnp.expand_dims(part[..., 0], axis) for part in sums)) for axis in (-1, -2))
    decay = jnp.where(_visible(number), jnp.exp(jnp.minimum(to.less(since), ROUNDING)), 0)
    return (q @ jnp.swapaxes(k, -1, -2) * decay) @ v


def _by_channel(q: Array, k: Array, v: Array, sums: Sums, number: Array) -> Array:
    """A decay for every key channel: of every stretch of 2, 4, 8, ... positions the later half reads the earlier one.

    They do so by ``exp(g_i - g_m) exp(g_m - g_j)``, m the last of the earlier half: both are at most 1, whatever the
    decays. Each length of stretch is a product of all with all in a block, of which its own pairs are taken.
    """
    size = q.shape[-2]
    out = (q * k).sum(-1, keepdims=True) * v
    half = 1
    for block in (min(BLOCK, size), size):
        scores = jnp.zeros((), q.dtype)
        q_, k_, v_ = (z.reshape(*z.shape[:-2], -1, block, z.shape[-1]) for z in (q, k, v))
        visible = _visible(number.reshape(*number.shape[:-1], -1, block))
        while half < block:
            factor = _to_the_middle(sums, half).reshape(q_.shape)
            taken = visible & jnp.broadcast_to(_halves(block, half), visible.shape)
            scores = scores + jnp.where(taken, (q_ * factor) @ jnp.swapaxes(k_ * factor, -1, -2), 0)
            half *= 2
        if scores.ndim:
            out = out + (scores @ v_).reshape(out.shape)
    return out


def _to_the_middle(sums: Sums, half: int) -> Array:
    """The decay between every position and the last of the earlier half of its stretch."""
    stretches = Sums(*(part.reshape(*part.shape[:-2], -1, 2 * half, part.shape[-1]) for part in sums))
    middle = Sums(*(part[..., half - 1 : half, :] for part in stretches))
    return jnp.exp(-jnp.abs(stretches.less(middle)))


def _halves(size: int, half: int) -> np.ndarray:
    """Queries in the later half of a stretch by keys in the earlier half of the same."""
    place = np.arange(size)
    late, stretch = place // half % 2 == 1, place // (2 * half)
    return late[:, None] & ~late & (stretch[:, None] == stretch)
