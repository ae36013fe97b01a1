"""The chunkwise implementation of linear attention: matrix products within a chunk, a scan over states between chunks.

The reference touches the whole state at every position, this form once a chunk (Hua et al. 2022, arXiv:2202.10447; Sun
et al. 2023, arXiv:2307.08621; Yang et al. 2023, arXiv:2312.06635; Dao & Gu 2024, arXiv:2405.21060). With ``g_i`` the
sum of log decays from the first position of a document in the chunk up to i, position i reads the key at j by
``exp(g_i - g_j)`` where j is not later and of the same document. Sums restart with documents, so that nothing of one
document, not even a rounding error of a gradient, reaches another.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.linear.chunks import chunk_size, scan_chunks
from jaxseq.typing import Array, Bool, Float, Int, SegmentIds

CHUNK_BY_HEAD, CHUNK_BY_CHANNEL = 64, 32
"""Positions of a chunk for a decay a head and for one a key channel."""

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


def chunkwise_linear_attention(
    state: Float[Array, "*B N H Hv"],
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N Hv"],
    log_decay: Float[Array, "*B T N"] | Float[Array, "*B T N H"],
    *,
    segment_ids: SegmentIds | None,
    chunk: int | None,
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B T N Hv"]]:
    """The last state and all outputs; all arrays in one dtype, with zeros at padded positions, at least one step."""
    by_head = log_decay.ndim < query.ndim
    if by_head:
        log_decay = log_decay[..., None]
    size = chunk_size(chunk, CHUNK_BY_HEAD if by_head else CHUNK_BY_CHANNEL, query.shape[-3])
    return scan_chunks(_chunk, state, [query, key, value, log_decay], segment_ids, size)


def _chunk(
    state: Float[Array, "*B N H Hv"], at: tuple[Array, Array, Array, Array, Array, Array]
) -> tuple[Float[Array, "*B N H Hv"], Float[Array, "*B N C Hv"]]:
    """One chunk: the state after it, and its outputs."""
    q, k, v, log_decay, document, before = at
    last = document[..., -1:]
    continues, leaves, passes = ((a == b)[..., None] for a, b in ((document, before), (document, last), (last, before)))
    # A chunk depends on its sums as on exp(g_i) q_i, exp(-g_j) k_j and exp(g) times the state. So the exponentials
    # below are constants; three factors of 1 carry every derivative by the decays: q · dq - k · dk.
    moving = _sums(log_decay, document)
    sums = lax.stop_gradient(moving)
    change = moving.fine - sums.fine
    q, k = q * jnp.exp(change), k * jnp.exp(-change)
    end = Sums(*(part[..., -1:, :] for part in sums))
    inside = _by_head if log_decay.shape[-1] == 1 else _by_channel
    seen = jnp.where(continues, q * sums.exp(), 0)
    out = inside(q, k, v, sums, document) + jnp.where(continues, seen @ state, 0)
    kept = jnp.where(leaves, k * jnp.exp(jnp.minimum(end.less(sums), ROUNDING)), 0)
    faded = jnp.where(passes, state, 0) * jnp.swapaxes(end.exp(), -1, -2)
    state = faded + jnp.swapaxes(kept, -1, -2) @ v
    return state * jnp.exp(jnp.swapaxes(change[..., -1:, :], -1, -2)), out


def _sums(log_decay: Float[Array, "*B N C H"], document: Int[Array, "*#B 1 C"]) -> Sums:
    """Sums of log decays from a document's beginning.

    Decays whose exponential is 0 anyway are cut off, so that the first part, a multiple of 2^-10, fits its mantissa.
    """
    least = np.log(np.finfo(log_decay.dtype).smallest_subnormal) - 1
    log_decay = jnp.where(log_decay > least, log_decay, least)
    step = STEP * max(log_decay.shape[-2] // 128, 1)  # 128 · 104 · 1024 < 2^24
    coarse = lax.stop_gradient(jnp.round(log_decay / step) * step)
    # one matrix for every head: a shared one would turn the other factor round, and back in the reverse scan
    shape = (*log_decay.shape[:-1], log_decay.shape[-2])
    summing = jnp.broadcast_to(_visible(document), shape).astype(log_decay.dtype)
    return Sums(*(jnp.matmul(summing, part, precision="highest") for part in (coarse, log_decay - coarse)))


def _visible(document: Int[Array, "*B C"]) -> Bool[Array, "*B C C"]:
    """Which keys a query may read: not later, of the same document."""
    size = document.shape[-1]
    causal = np.tril(np.ones((size, size), bool))
    return (document[..., :, None] == document[..., None, :]) & jnp.broadcast_to(causal, (*document.shape, size))


def _by_head(q: Array, k: Array, v: Array, sums: Sums, document: Array) -> Array:
    """One decay a head: one matrix of decays a chunk."""
    to, since = (Sums(*(jnp.expand_dims(part[..., 0], axis) for part in sums)) for axis in (-1, -2))
    decay = jnp.where(_visible(document), jnp.exp(jnp.minimum(to.less(since), ROUNDING)), 0)
    return (q @ jnp.swapaxes(k, -1, -2) * decay) @ v


def _by_channel(q: Array, k: Array, v: Array, sums: Sums, document: Array) -> Array:
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
        visible = _visible(document.reshape(*document.shape[:-1], -1, block))
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
