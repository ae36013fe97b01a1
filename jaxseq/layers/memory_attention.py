"""Attention over a memory: what a decoder reads and never changes, its projections made once.

    memory = attention.project(encoded, segment_ids)      # once a sequence
    context = attention(query, memory)                    # at every step, or for all queries at once
    weights = attention.weights(query, memory)            # [*B N T S], what the context was mixed by

Each kind is one score ``e(q, k)``; then ``a = softmax(e)`` over the real positions and ``c = Σ_s a_s v_s``.
"""

import abc
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.layers.capture import MEMORY, record
from jaxseq.ops import attention, attention_weights, masked_softmax, masks, segments
from jaxseq.ops.attention.masks import Mask
from jaxseq.typing import Array, DType, Float, SegmentIds


class Memory(NamedTuple):
    """Keys and values of every position, and which are real (id 0: padding; None: all are)."""

    keys: Float[Array, "*B S M H"]
    values: Float[Array, "*B S M E"]
    segment_ids: SegmentIds | None


class MemoryAttention(nn.Module, abc.ABC):
    """Abstract: scores of queries against keys, softmax over what is real, a mean of values.

    ``features`` is the width in which queries and keys meet. Values are the memory itself, or with ``value_features``
    a projection of it to that width: key and value sizes are free of each other.
    """

    features: int
    value_features: int | None = None
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def setup(self) -> None:
        """The values' projection, where there is one."""
        self.value = None if self.value_features is None else self._dense(self.value_features)

    def _dense(self, features: int, use_bias: bool = False) -> nn.Dense:
        return nn.Dense(features, use_bias=use_bias, dtype=self.dtype, param_dtype=self.param_dtype)

    def project(self, memory: Float[Array, "*B S D"], segment_ids: SegmentIds | None = None) -> Memory:
        """The keys and values of a memory; what stands at padding is of no account."""
        memory = segments.without_padding(memory.astype(self.dtype), segment_ids)
        values = memory if self.value is None else self.value(memory)
        return Memory(self.keys_of(memory)[..., None, :], values[..., None, :], segment_ids)

    def keys_of(self, memory: Float[Array, "*B S D"]) -> Float[Array, "*B S H"]:
        """The keys: the memory itself."""
        return memory

    @abc.abstractmethod
    def weights(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B N T S"]:
        """What each query takes of each position of the memory; zeros where it sees none."""

    def mix(self, weights: Float[Array, "*B N T S"], memory: Memory) -> Float[Array, "*B T F"]:
        """``Σ_s a_s v_s``: the context that belongs to weights."""
        values = memory.values[..., 0, :]
        return jnp.matmul(weights[..., 0, :, :].astype(values.dtype), values)

    def __call__(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B T F"]:
        """The contexts of the queries.

        With ``segment_ids`` of the queries, a query sees the memory of its own document only (packed rows); without,
        all that is real.
        """
        return self.read(query, memory, segment_ids)[0]

    def read(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> tuple[Float[Array, "*B T F"], Float[Array, "*B N T S"]]:
        """The contexts, and the weights that they are mixed by."""
        weights = self.weights(query, memory, segment_ids)
        record(self, MEMORY, lambda: weights)
        return self.mix(weights, memory), weights


def visible(memory: Memory, segment_ids: SegmentIds | None) -> Mask | None:
    """Which positions of the memory the queries see."""
    if segment_ids is not None:
        ids = memory.segment_ids
        return masks.segments(segment_ids, jnp.ones(memory.keys.shape[:-2], jnp.int32) if ids is None else ids)
    return None if memory.segment_ids is None else masks.padding(memory.segment_ids != 0)


class AdditiveAttention(MemoryAttention):
    """``e = v · tanh(W_q q + b + W_k k)``: a layer of ``features`` units (Bahdanau et al. 2015, arXiv:1409.0473)."""

    def setup(self) -> None:
        """The query's and the keys' halves of the layer, and what reads it."""
        super().setup()
        self.query, self.key = self._dense(self.features, use_bias=True), self._dense(self.features)
        self.score = self.param(
            "score", nn.initializers.normal(self.features**-0.5), (self.features,), self.param_dtype
        )

    def keys_of(self, memory: Float[Array, "*B S D"]) -> Float[Array, "*B S H"]:
        """``W_k k``."""
        return self.key(memory)

    def weights(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the scores."""
        query = self.query(segments.without_padding(query.astype(self.dtype), segment_ids))
        scores = _additive(query, memory.keys[..., 0, :], self.score.astype(self.dtype))
        return masked_softmax(scores[..., None, :, :], visible(memory, segment_ids))


@partial(jax.checkpoint, prevent_cse=False)
def _additive(
    query: Float[Array, "*B T H"], keys: Float[Array, "*B S H"], score: Float[Array, " H"]
) -> Float[Array, "*B T S"]:
    """``tanh(q + k) · v``; the hidden layer, T · S · H numbers, is made again on the way back, which is faster."""
    return jnp.tanh(query[..., :, None, :] + keys[..., None, :, :]) @ score


class DotAttention(MemoryAttention):
    """``e = q · k``, or ``q · k / √H`` if ``scaled`` (Luong et al. 2015; Vaswani et al. 2017): nothing is learned.

    Raises:
      ValueError: the query is not as wide as the memory.
    """

    scaled: bool = False

    def _scale(self, query: Array, memory: Memory) -> float:
        if query.shape[-1] != memory.keys.shape[-1]:
            raise ValueError(
                f"a dot product needs one width: the query has {query.shape[-1]}, the keys {memory.keys.shape[-1]}"
            )
        return query.shape[-1] ** -0.5 if self.scaled else 1.0

    def weights(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the products."""
        query, scale = query.astype(self.dtype)[..., None, :], self._scale(query, memory)
        return attention_weights(query, memory.keys, mask=visible(memory, segment_ids), scale=scale)

    def __call__(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B T F"]:
        """The contexts by ``jaxseq.ops.attention``, which never has all weights at once."""
        record(self, MEMORY, lambda: self.weights(query, memory, segment_ids))
        scale, mask = self._scale(query, memory), visible(memory, segment_ids)
        heads = query.astype(self.dtype)[..., None, :]
        return attention(heads, memory.keys, memory.values, mask=mask, scale=scale)[..., 0, :]


class GeneralAttention(DotAttention):
    """``e = q · W k``: W brings the memory to the query's width ``features`` (Luong et al. 2015, arXiv:1508.04025)."""

    def setup(self) -> None:
        """W."""
        super().setup()
        self.key = self._dense(self.features)

    def keys_of(self, memory: Float[Array, "*B S D"]) -> Float[Array, "*B S H"]:
        """``W k``."""
        return self.key(memory)


class MultiHeadAttention(MemoryAttention):
    """``[head_1; ...; head_N] W_o``, ``head_n = softmax(q W_q (k W_k)ᵀ / √H) v W_v`` (Vaswani et al. 2017).

    ``features`` is the width of what is put out. All heads' keys together are ``key_features`` wide and their values
    ``value_features``, both ``features`` unless given. One head for every 64 features where that divides, else one,
    unless ``num_heads`` says.

    Raises:
      ValueError: heads do not divide the keys' or the values' width.
    """

    num_heads: int | None = None
    key_features: int | None = None
    use_bias: bool = True

    def setup(self) -> None:
        """Four projections."""
        keys, values = (self.features if n is None else n for n in (self.key_features, self.value_features))
        heads = self.num_heads
        if heads is None:
            heads = self.features // 64 if self.features % 64 == 0 else 1
        if heads < 1 or keys % heads or values % heads:
            raise ValueError(f"num_heads={heads} does not divide the widths of keys, {keys}, and values, {values}")
        self.heads = heads
        self.query, self.key = self._dense(keys, self.use_bias), self._dense(keys, self.use_bias)
        self.value, self.out = self._dense(values, self.use_bias), self._dense(self.features, self.use_bias)

    def _split(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T N H"]:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _queries(self, query: Array, segment_ids: SegmentIds | None) -> Float[Array, "*B T N H"]:
        return self._split(self.query(segments.without_padding(query.astype(self.dtype), segment_ids)))

    def project(self, memory: Float[Array, "*B S D"], segment_ids: SegmentIds | None = None) -> Memory:
        """Each head's keys and values."""
        memory = segments.without_padding(memory.astype(self.dtype), segment_ids)
        return Memory(self._split(self.key(memory)), self._split(self.value(memory)), segment_ids)

    def weights(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B N T S"]:
        """Each head's weights."""
        return attention_weights(self._queries(query, segment_ids), memory.keys, mask=visible(memory, segment_ids))

    def mix(self, weights: Float[Array, "*B N T S"], memory: Memory) -> Float[Array, "*B T F"]:
        """The heads' means side by side, through W_o."""
        mixed = jnp.einsum("...nts,...snh->...tnh", weights.astype(memory.values.dtype), memory.values)
        return self.out(_joined(mixed))

    def __call__(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None = None
    ) -> Float[Array, "*B T F"]:
        """The contexts by ``jaxseq.ops.attention``."""
        record(self, MEMORY, lambda: self.weights(query, memory, segment_ids))
        mask = visible(memory, segment_ids)
        mixed = attention(self._queries(query, segment_ids), memory.keys, memory.values, mask=mask)
        return self.out(_joined(mixed))


def _joined(heads: Float[Array, "*B T N H"]) -> Float[Array, "*B T F"]:
    return heads.reshape(*heads.shape[:-2], heads.shape[-2] * heads.shape[-1])


def scaled_dot(features: int, **fields: object) -> DotAttention:
    """``DotAttention`` with its scale."""
    return DotAttention(features, scaled=True, **fields)  # type: ignore[arg-type]


ATTENTIONS = {
    "additive": AdditiveAttention,
    "dot": DotAttention,
    "scaled_dot": scaled_dot,
    "general": GeneralAttention,
    "multi_head": MultiHeadAttention,
}
"""Every kind by its name; ``ATTENTIONS[name](features)`` always works."""
