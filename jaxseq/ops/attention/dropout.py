"""Dropout of attention weights, drawn again for each evaluated tile of weights instead of stored.

The draw of a pair is a hash of the key, the batch element, the head, the query and the key-value position, so it is the
same in every implementation, for every size of tiles, forward and backward. Each (element, head, query) and (element,
head, key) gets a word from Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); the
exclusive or of the two words of a pair goes through a permutation of 32 bits of which each output bit depends on all
input bits (``triple32`` of Wellons' hash prospector).
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p

from jaxseq.ops.attention.tiled import STATIC, Span, Tiled, align_ranks, leaf, slice_span
from jaxseq.typing import Array, Bool, Float

_KEYS = np.uint32(1 << 31)
"""Added to the head in the words of keys, which separates them from those of queries."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Dropout(Tiled):
    """Which weights are kept, made by ``make_dropout``; indices where a call computes a part of all heads and pairs."""

    rate: float = field(default=0.0, metadata=STATIC)
    num_heads: int = field(default=1, metadata=STATIC)
    first: Any = field(default=None, metadata=leaf(""))
    second: Any = field(default=None, metadata=leaf(""))
    head_indices: Any = field(default=None, metadata=leaf("N"))
    q_indices: Any = field(default=None, metadata=leaf("T"))
    kv_indices: Any = field(default=None, metadata=leaf("S"))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        heads = Span(0, self.num_heads) if heads is None else heads
        head = _indices(heads, self.head_indices)[..., :, None, None]
        # The barrier keeps XLA from fusing the words into the loop over pairs, which would compute them for each pair.
        q, k = lax.optimization_barrier(
            (
                _words(self, head, _indices(rows, self.q_indices)[..., None, :, None]),
                _words(self, head + _KEYS, _indices(columns, self.kv_indices)[..., None, None, :]),
            )
        )
        return _permute(q ^ k) >= np.uint32(min(round(self.rate * 2**32), 2**32 - 1))

    def apply(self, weights: Float[Array, "*B"], kept: Bool[Array, "*#B"]) -> Float[Array, "*B"]:
        """The kept weights divided by ``1 - rate``; zeros for the others."""
        return jnp.where(kept, weights / (1 - self.rate), jnp.zeros((), weights.dtype))


def make_dropout(rate: float, key: Any, batch: tuple[int, ...], num_heads: int) -> Dropout | None:
    """The dropout of one call; None if the rate is 0.

    Raises:
        ValueError: the rate is not in [0, 1), or is positive without a single key.
        TypeError: the key is not a typed key (``jax.random.key``).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate must be in [0, 1), got {rate}")
    if rate == 0:
        return None
    if key is None:
        raise ValueError(f"dropout_rate={rate} needs a dropout_key; pass 0.0 for no dropout")
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        found = type(key).__name__ if dtype is None else f"an array of {dtype}"
        raise TypeError(f"dropout_key must be a typed key (jax.random.key), got {found}")
    if key.shape:
        raise ValueError(f"dropout_key must be one key, got keys of shape {key.shape}")
    words = jax.random.key_data(key)
    first, second = words[..., 0], words[..., 1]
    for i in range(2, words.shape[-1], 2):  # an rbg key has four words
        first, second = _threefry(first, second, words[..., i], words[..., i + 1])
    element = jnp.arange(math.prod(batch), dtype=jnp.uint32).reshape(batch)
    first, second = (x.reshape((1,) * len(batch)) for x in (first, second))
    first, second = _threefry(first, second, element, jnp.zeros_like(element))
    return Dropout(rate=float(rate), num_heads=num_heads, first=first, second=second)


def _indices(span: Span, given: Array | None) -> Array:
    if given is not None:
        return slice_span(given, span).astype(jnp.uint32)
    return jnp.arange(span.size, dtype=jnp.uint32) + jnp.asarray(span.start).astype(jnp.uint32)


def _words(dropout: Dropout, head: Array, index: Array) -> Array:
    """A word for each ``[*B, head, index]``, where the index is axis -2 or -1."""
    first, second = dropout.first[..., None, None, None], dropout.second[..., None, None, None]
    return _threefry(*align_ranks(first, second, head, index))[0]


def _threefry(*words: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of two words of a key and two of a counter, which broadcast against each other."""
    # The primitive needs four arrays of one shape, under vmap too: each gets the shape and the batching of the sum.
    nothing = functools.reduce(jnp.add, words) * np.uint32(0)
    first, second = threefry2x32_p.bind(*(x + nothing for x in words))
    return first, second


def _permute(x: Array) -> Array:
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(14))
