"""Attention over a memory, whose keys and values are projected once and read by many queries.

    memory = attention.project(encoded, segment_ids)      # once a sequence
    contexts = attention(query, memory)                   # at every step, or for all queries at once
    weights = attention.weights(query, memory)            # [*B N T S]

Every kind scores a query against each key, ``e(q, k)``; then ``a = softmax(e)`` over the real positions and
``c = Σ_s a_s v_s``.
"""

import abc
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.layers.capture import MEMORY_ATTENTION, record
from jaxseq.ops import attention, attention_weights, masked_softmax, masks, segments
from jaxseq.ops.attention.masks import Mask
from jaxseq.typing import Array, DType, Float, SegmentIds


class Memory(NamedTuple):
    """Projected keys and values, and the segment ids of their positions (0: padding; None: all are real)."""

    keys: Float[Array, "*B S M H"]
    values: Float[Array, "*B S M E"]
    segment_ids: SegmentIds | None


class Projections(NamedTuple):
    """The layers of an attention (None: the identity), and the number of heads that queries, keys and values have."""

    query: nn.Module | None = None
    key: nn.Module | None = None
    value: nn.Module | None = None
    out: nn.Module | None = None
    num_heads: int = 1


class MemoryAttention(nn.Module, abc.ABC):
    """Abstract: ``c = Σ_s a_s v_s`` with ``a = softmax(e(q, k))`` over the positions that the query may see.

    ``features`` is the width of queries and keys where they are compared. The values are the memory itself, or with
    ``value_features`` a projection of it to that width.

    A subclass gives its layers (``projections``) and its scores: ``head_weights``, and ``head_contexts``, which may be
    computed without all weights at once. Both see projected queries and keys, split into heads.
    """

    features: int
    value_features: int | None = None
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @abc.abstractmethod
    def projections(self) -> Projections:
        """Creates the layers, and any further parameters; called once, by ``setup``."""

    @abc.abstractmethod
    def head_weights(
        self, query: Float[Array, "*B T N H"], keys: Float[Array, "*B S N H"], mask: Mask | None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the scores; zeros for a query that sees nothing."""

    @abc.abstractmethod
    def head_contexts(
        self, query: Float[Array, "*B T N H"], memory: Memory, mask: Mask | None
    ) -> Float[Array, "*B T N E"]:
        """The mean of the values under those weights."""

    @final
    def setup(self) -> None:
        """Registers the layers under the names of ``Projections``."""
        self.query, self.key, self.value, self.out, self.heads = self.projections()

    @final
    def project(self, memory: Float[Array, "*B S D"], segment_ids: SegmentIds | None = None) -> Memory:
        """The keys and values of a memory; padded positions are ignored."""
        memory = segments.without_padding(memory.astype(self.dtype), segment_ids)
        return Memory(self._split(self.key, memory), self._split(self.value, memory), segment_ids)

    @final
    def __call__(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B T F"]:
        """The contexts of the queries.

        With ``segment_ids`` of the queries, a query sees the positions of its own document only (packed rows);
        without, all real positions.
        """
        record(self, MEMORY_ATTENTION, lambda: self.weights(query, memory, segment_ids))
        return self._merged(self.head_contexts(self._queries(query, segment_ids), memory, _mask(memory, segment_ids)))

    @final
    def weights(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B N T S"]:
        """The weight that each query gives to each position of the memory, for every head."""
        return self.head_weights(self._queries(query, segment_ids), memory.keys, _mask(memory, segment_ids))

    @final
    def mix(self, weights: Float[Array, "*B N T S"], memory: Memory) -> Float[Array, "*B T F"]:
        """The contexts that belong to given weights: ``Σ_s a_s v_s``."""
        return self._merged(weighted_mean(weights, memory))

    @final
    def read(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> tuple[Float[Array, "*B T F"], Float[Array, "*B N T S"]]:
        """The contexts and the weights together, for a caller that needs both."""
        weights = self.weights(query, memory, segment_ids)
        record(self, MEMORY_ATTENTION, lambda: weights)
        return self.mix(weights, memory), weights

    @final
    def dense(self, features: int, use_bias: bool = False) -> nn.Dense:
        """A linear layer of this module's dtypes, for ``projections``."""
        return nn.Dense(features, use_bias=use_bias, dtype=self.dtype, param_dtype=self.param_dtype)

    @final
    def value_projection(self) -> nn.Dense | None:
        """The projection of the values to ``value_features``; None if that is None."""
        return None if self.value_features is None else self.dense(self.value_features)

    def _split(self, layer: nn.Module | None, x: Float[Array, "*B T D"]) -> Float[Array, "*B T N H"]:
        x = x if layer is None else layer(x)
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _queries(self, query: Float[Array, "*B T D"], segment_ids: SegmentIds | None) -> Float[Array, "*B T N H"]:
        return self._split(self.query, segments.without_padding(query.astype(self.dtype), segment_ids))

    def _merged(self, heads: Float[Array, "*B T N E"]) -> Float[Array, "*B T F"]:
        context = heads.reshape(*heads.shape[:-2], heads.shape[-2] * heads.shape[-1])
        return context if self.out is None else self.out(context)


def weighted_mean(weights: Float[Array, "*B N T S"], memory: Memory) -> Float[Array, "*B T N E"]:
    """``Σ_s a_s v_s`` for every head; for a single one without a dimension of heads, which needs no transposes."""
    weights, values = weights.astype(memory.values.dtype), memory.values
    if values.shape[-2] == 1:
        return jnp.matmul(weights[..., 0, :, :], values[..., 0, :])[..., None, :]
    return jnp.einsum("...nts,...snh->...tnh", weights, values)


def _mask(memory: Memory, segment_ids: SegmentIds | None) -> Mask | None:
    """Which positions of the memory the queries see."""
    if segment_ids is not None:
        ids = memory.segment_ids
        return masks.segments(segment_ids, jnp.ones(memory.keys.shape[:-2], jnp.int32) if ids is None else ids)
    return None if memory.segment_ids is None else masks.padding(memory.segment_ids != 0)


class AdditiveAttention(MemoryAttention):
    """``e = v · tanh(W_q q + b + W_k k)``: a layer of ``features`` units (Bahdanau et al. 2015, arXiv:1409.0473)."""

    def projections(self) -> Projections:
        """W_q with b, and W_k; the vector v is the parameter ``score``."""
        init = nn.initializers.normal(self.features**-0.5)
        self.score = self.param("score", init, (self.features,), self.param_dtype)
        query, key = self.dense(self.features, use_bias=True), self.dense(self.features)
        return Projections(query, key, self.value_projection())

    def head_weights(
        self, query: Float[Array, "*B T N H"], keys: Float[Array, "*B S N H"], mask: Mask | None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the scores, one head."""
        scores = _additive(query[..., 0, :], keys[..., 0, :], self.score.astype(self.dtype))
        return masked_softmax(scores[..., None, :, :], mask)

    def head_contexts(
        self, query: Float[Array, "*B T N H"], memory: Memory, mask: Mask | None
    ) -> Float[Array, "*B T N E"]:
        """The mean of the values under the weights."""
        return weighted_mean(self.head_weights(query, memory.keys, mask), memory)


@partial(jax.checkpoint, prevent_cse=False)
def _additive(
    query: Float[Array, "*B T H"], keys: Float[Array, "*B S H"], score: Float[Array, " H"]
) -> Float[Array, "*B T S"]:
    """``tanh(q + k) · v``. The backward pass recomputes the hidden layer (T · S · H numbers), which is faster."""
    return jnp.tanh(query[..., :, None, :] + keys[..., None, :, :]) @ score


class ProductAttention(MemoryAttention):
    """Abstract: ``e = q · k``, or ``q · k / √H`` if ``scaled``; the contexts come from ``jaxseq.ops.attention``.

    Raises:
      ValueError: queries and keys differ in width.
    """

    scaled: bool = False

    @final
    def head_weights(
        self, query: Float[Array, "*B T N H"], keys: Float[Array, "*B S N H"], mask: Mask | None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the products."""
        return attention_weights(query, keys, mask=mask, scale=self._scale(query.shape[-1], keys.shape[-1]))

    @final
    def head_contexts(
        self, query: Float[Array, "*B T N H"], memory: Memory, mask: Mask | None
    ) -> Float[Array, "*B T N E"]:
        """Computes the contexts by ``jaxseq.ops.attention``, which need not store all weights."""
        scale = self._scale(query.shape[-1], memory.keys.shape[-1])
        return attention(query, memory.keys, memory.values, mask=mask, scale=scale)

    def _scale(self, query_width: int, key_width: int) -> float:
        if query_width != key_width:
            raise ValueError(f"a dot product needs one width: the query has {query_width}, the keys {key_width}")
        return key_width**-0.5 if self.scaled else 1.0


class DotAttention(ProductAttention):
    """``e = q · k``, or ``q · k / √H`` if ``scaled``, nothing learned (Luong et al. 2015; Vaswani et al. 2017)."""

    def projections(self) -> Projections:
        """The value projection, if ``value_features`` is given."""
        return Projections(value=self.value_projection())


class GeneralAttention(ProductAttention):
    """``e = q · W k``: W brings the memory to the query's width ``features`` (Luong et al. 2015, arXiv:1508.04025)."""

    def projections(self) -> Projections:
        """The projection W of the keys, and the value projection."""
        return Projections(key=self.dense(self.features), value=self.value_projection())


class MultiHeadAttention(ProductAttention):
    """``[head_1; ...; head_N] W_o``, ``head_n = softmax(q W_q (k W_k)ᵀ / √H) v W_v`` (Vaswani et al. 2017).

    ``features`` is the width of the output. All heads' keys together are ``key_features`` wide and their values
    ``value_features``, both ``features`` unless given. One head for every 64 features where that divides, else one,
    unless ``num_heads`` is given.

    Raises:
      ValueError: heads do not divide the keys' or the values' width.
    """

    scaled: bool = True
    num_heads: int | None = None
    key_features: int | None = None
    use_bias: bool = True

    def projections(self) -> Projections:
        """The projections W_q, W_k, W_v and W_o."""
        keys, values = (self.features if n is None else n for n in (self.key_features, self.value_features))
        heads = self.num_heads
        if heads is None:
            heads = self.features // 64 if self.features % 64 == 0 else 1
        if heads < 1 or keys % heads or values % heads:
            raise ValueError(f"num_heads={heads} does not divide the widths of keys, {keys}, and values, {values}")
        query, key, value, out = (self.dense(width, self.use_bias) for width in (keys, keys, values, self.features))
        return Projections(query, key, value, out, heads)


ATTENTIONS: dict[str, Callable[..., MemoryAttention]] = {
    "additive": AdditiveAttention,
    "dot": DotAttention,
    "scaled_dot": partial(DotAttention, scaled=True),
    "general": GeneralAttention,
    "multi_head": MultiHeadAttention,
}
"""Every kind by its name; ``ATTENTIONS[name](features)`` always works."""
