"""Products of decays within a chunk, from sums of their logarithms that keep the precision of differences.

Only exponentials of numbers that are at most 0 are formed. Sums restart with documents, so that nothing of one
document, not even a rounding error of a gradient, reaches another.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.typing import Array, Bool, Float, Int

STEP = 1 / 1024
"""The first part of a sum of log decays is a multiple of this."""

MAX_ROUNDING_ERROR = 1.0
"""The bound of sums of log decays: at most 0, but for rounding errors (those of the mLSTM are differences)."""


class Sums(NamedTuple):
    """Sums of log decays in two parts, the first exact, the second small, so that differences keep their precision."""

    coarse: Float[Array, "..."]
    fine: Float[Array, "..."]

    def exp(self) -> Array:
        """``exp(self)``."""
        return jnp.exp(self.coarse + self.fine)

    def minus(self, other: "Sums") -> Array:
        """``self - other``."""
        return (self.coarse - other.coarse) + (self.fine - other.fine)


def sums_in_chunk(log_decay: Float[Array, "*B N C H"], document: Int[Array, "*#B 1 C"]) -> Sums:
    """Sums of log decays from a document's beginning.

    Decays are clipped where their exponential underflows to 0, so that the first part fits into its mantissa.
    """
    least = np.log(np.finfo(log_decay.dtype).smallest_subnormal) - 1
    log_decay = jnp.where(log_decay > least, log_decay, least)
    step = STEP * max(log_decay.shape[-2] // 128, 1)  # 128 · 104 · 1024 < 2^24
    coarse = lax.stop_gradient(jnp.round(log_decay / step) * step)
    # One matrix for every head: a shared one would transpose the other factor, and again in the reverse scan.
    shape = (*log_decay.shape[:-1], log_decay.shape[-2])
    summing = jnp.broadcast_to(visible_keys(document), shape).astype(log_decay.dtype)
    return Sums(*(jnp.matmul(summing, part, precision="highest") for part in (coarse, log_decay - coarse)))


def visible_keys(document: Int[Array, "*B C"]) -> Bool[Array, "*B C C"]:
    """Which keys a query may read: not later, of the same document."""
    size = document.shape[-1]
    causal = np.tril(np.ones((size, size), bool))
    return (document[..., :, None] == document[..., None, :]) & jnp.broadcast_to(causal, (*document.shape, size))


def decay_to_middle(sums: Sums, half: int) -> Array:
    """The decay between every position and the last of the earlier half of its interval."""
    intervals = Sums(
        *(part.reshape(*part.shape[:-2], part.shape[-2] // (2 * half), 2 * half, part.shape[-1]) for part in sums)
    )
    middle = Sums(*(part[..., half - 1 : half, :] for part in intervals))
    return jnp.exp(-jnp.abs(intervals.minus(middle)))


def half_pairs(size: int, half: int) -> np.ndarray:
    """True for queries in the later half of an interval and keys in the earlier half of the same interval."""
    place = np.arange(size)
    late, interval = place // half % 2 == 1, place // (2 * half)
    return late[:, None] & ~late & (interval[:, None] == interval)
