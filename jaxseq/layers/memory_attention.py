"""Attention over a memory, whose keys and values are projected once and read by many queries.

    memory = attention.project(encoded, segment_ids)      # once a sequence
    contexts = attention(query, memory)                   # at every step, or for all queries at once
    weights = attention.weights(query, memory)            # [*B N T S]

Every kind scores a query against each key, ``e(q, k)``; then ``a = softmax(e)`` over the real positions and
``c = Σ_s a_s v_s``. Dropout of the weights a is active exactly if a ``dropout`` key is given.
"""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.layers.attention_positions import ScoreBias
from jaxseq.layers.capture import MEMORY_ATTENTION, record
from jaxseq.layers.dense import Dense
from jaxseq.ops import AttentionImplementation, attention, attention_weights, masked_softmax, masks, segments
from jaxseq.ops.attention.masks import Mask
from jaxseq.ops.inputs import check_inputs, check_leading
from jaxseq.typing import Array, DType, Float, Key, SegmentIds

Rotate: TypeAlias = Callable[[Float[Array, "*B T N H"]], Float[Array, "*B T N H"]]
"""Rotates projected queries or keys by their positions."""


class Memory(NamedTuple):
    """Projected keys and values, and the segment ids of their positions (0: padding; None: all are real)."""

    keys: Float[Array, "*B S M H"]
    values: Float[Array, "*B S M E"]
    segment_ids: SegmentIds | None


class Projections(NamedTuple):
    """The layers of an attention (None: the identity), and the number of heads of queries, keys and values."""

    query: nn.Module | None = None
    key: nn.Module | None = None
    value: nn.Module | None = None
    out: nn.Module | None = None
    num_heads: int = 1


class MemoryAttention(nn.Module, abc.ABC):
    """Abstract: ``c = Σ_s a_s v_s`` with ``a = softmax(e(q, k))`` over the positions that the query may see.

    ``features`` is the width of queries and keys where they are compared. The values are the memory itself, or with
    ``value_features`` a projection of it to that width. ``attention_dropout`` drops weights for the contexts, if a
    ``dropout`` key is given; weights on request are without dropout.

    A subclass gives its layers (``projections``) and its scores: ``head_weights``, and ``head_contexts``, which may be
    computed without all weights at once. Both see projected queries and keys, split into heads.

    Raises:
      ValueError: queries, memory or segment ids of a shape or dtype that does not fit, or ``attention_dropout`` is not
        in [0, 1).
    """

    features: int
    value_features: int | None = None
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    attention_dropout: float = 0.0

    @abc.abstractmethod
    def projections(self) -> Projections:
        """Creates the layers, and any further parameters; called once, by ``setup``."""

    @abc.abstractmethod
    def head_weights(
        self, query: Float[Array, "*B T N H"], keys: Float[Array, "*B S N H"], mask: Mask | None, bias: ScoreBias | None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the scores and the bias; zeros for a query that sees nothing."""

    @abc.abstractmethod
    def head_contexts(
        self,
        query: Float[Array, "*B T N H"],
        memory: Memory,
        mask: Mask | None,
        bias: ScoreBias | None,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "*B T N E"]:
        """The mean of the values under those weights, dropped at the rate ``attention_dropout`` if there is a key."""

    @final
    def setup(self) -> None:
        """Registers the layers under the names of ``Projections``."""
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout={self.attention_dropout} is not in [0, 1)")
        self.query, self.key, self.value, self.out, self.heads = self.projections()

    @final
    def project(
        self, memory: Float[Array, "*B S D"], segment_ids: SegmentIds | None = None, rotate: Rotate | None = None
    ) -> Memory:
        """The keys and values of a memory; padded positions are ignored. ``rotate`` is applied to the keys."""
        check_inputs(f"{type(self).__name__}, for a memory,", memory, segment_ids)
        memory = segments.without_padding(memory.astype(self.dtype), segment_ids)
        keys = self._split(self.key, memory)
        return Memory(keys if rotate is None else rotate(keys), self._split(self.value, memory), segment_ids)

    @final
    def __call__(
        self,
        query: Float[Array, "*B T D"],
        memory: Memory,
        segment_ids: SegmentIds | None = None,
        *,
        rotate: Rotate | None = None,
        bias: ScoreBias | None = None,
    ) -> Float[Array, "*B T F"]:
        """The contexts of the queries.

        Args:
          query: the queries.
          memory: the result of ``project``.
          segment_ids: of the queries; with them, a query sees the positions of its own document only (packed rows),
            without, all real positions.
          rotate: applied to the projected queries; for positions (``layers.AttentionPositions``), as is ``bias``.
          bias: added to the scores.
        """
        record(self, MEMORY_ATTENTION, lambda: self.weights(query, memory, segment_ids, rotate=rotate, bias=bias))
        queries, mask = self._prepared(query, memory, segment_ids, rotate)
        return self._merged(self.head_contexts(queries, memory, mask, bias, self._dropout_key()))

    @final
    def weights(
        self,
        query: Float[Array, "*B T D"],
        memory: Memory,
        segment_ids: SegmentIds | None = None,
        *,
        rotate: Rotate | None = None,
        bias: ScoreBias | None = None,
    ) -> Float[Array, "*B N T S"]:
        """The weight that each query gives to each position of the memory, for every head; arguments as in a call."""
        queries, mask = self._prepared(query, memory, segment_ids, rotate)
        return self.head_weights(queries, memory.keys, mask, bias)

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
        return self.mix(self.dropped(weights, self._dropout_key()), memory), weights

    @final
    def dropped(
        self, weights: Float[Array, "*B N T S"], dropout_key: Key[Array, ""] | None
    ) -> Float[Array, "*B N T S"]:
        """The weights with dropout, for ``head_contexts``; unchanged without a key."""
        if dropout_key is None:
            return weights
        kept = jax.random.bernoulli(dropout_key, 1 - self.attention_dropout, weights.shape)
        return jnp.where(kept, weights / (1 - self.attention_dropout), jnp.zeros_like(weights))

    @final
    def dense(self, features: int, use_bias: bool = False) -> Dense:
        """A linear layer of this module's dtypes, for ``projections``."""
        return Dense(features, use_bias=use_bias, dtype=self.dtype, param_dtype=self.param_dtype)

    @final
    def value_projection(self) -> Dense | None:
        """The projection of the values to ``value_features``; None if that is None."""
        return None if self.value_features is None else self.dense(self.value_features)

    def _split(self, layer: nn.Module | None, x: Float[Array, "*B T D"]) -> Float[Array, "*B T N H"]:
        x = x if layer is None else layer(x)
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _prepared(
        self, query: Float[Array, "*B T D"], memory: Memory, segment_ids: SegmentIds | None, rotate: Rotate | None
    ) -> tuple[Float[Array, "*B T N H"], Mask | None]:
        """Checks the arguments; returns the projected queries, and the mask of the positions that they see."""
        name = type(self).__name__
        check_inputs(name, query, segment_ids)
        if not isinstance(memory, Memory):
            raise ValueError(f"{name} needs a Memory, as project makes it, not {type(memory).__name__}")
        check_leading(name, "a memory", memory, query)
        segments.check(f"{name}, for a memory,", memory.segment_ids, memory.keys.shape[:-2], "keys")
        queries = self._split(self.query, segments.without_padding(query.astype(self.dtype), segment_ids))
        return (queries if rotate is None else rotate(queries)), _mask(memory, segment_ids)

    def _dropout_key(self) -> Key[Array, ""] | None:
        active = self.attention_dropout > 0 and self.has_rng("dropout")
        return self.make_rng("dropout") if active else None

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
        self, query: Float[Array, "*B T N H"], keys: Float[Array, "*B S N H"], mask: Mask | None, bias: ScoreBias | None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the scores, one head."""
        scores = _additive(query[..., 0, :], keys[..., 0, :], self.score.astype(self.dtype))
        return masked_softmax(scores[..., None, :, :], mask, bias)

    def head_contexts(
        self,
        query: Float[Array, "*B T N H"],
        memory: Memory,
        mask: Mask | None,
        bias: ScoreBias | None,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "*B T N E"]:
        """The mean of the values under the weights."""
        weights = self.head_weights(query, memory.keys, mask, bias)
        return weighted_mean(self.dropped(weights, dropout_key), memory)


@partial(jax.checkpoint, prevent_cse=False)
def _additive(
    query: Float[Array, "*B T H"], keys: Float[Array, "*B S H"], score: Float[Array, " H"]
) -> Float[Array, "*B T S"]:
    """``tanh(q + k) · v``. The backward pass recomputes the hidden layer (T · S · H numbers), which is faster."""
    return jnp.tanh(query[..., :, None, :] + keys[..., None, :, :]) @ score


class ProductAttention(MemoryAttention):
    """Abstract: ``e = q · k``, or ``q · k / √H`` if ``scaled``; the contexts come from ``jaxseq.ops.attention``.

    ``implementation`` is that of the op, which names what each one can do.

    Raises:
      ValueError: queries and keys differ in width.
    """

    scaled: bool = False
    implementation: AttentionImplementation = "auto"

    @final
    def head_weights(
        self, query: Float[Array, "*B T N H"], keys: Float[Array, "*B S N H"], mask: Mask | None, bias: ScoreBias | None
    ) -> Float[Array, "*B N T S"]:
        """The softmax of the products."""
        scale = self._scale(query.shape[-1], keys.shape[-1])
        return attention_weights(query, keys, mask=mask, bias=bias, scale=scale)

    @final
    def head_contexts(
        self,
        query: Float[Array, "*B T N H"],
        memory: Memory,
        mask: Mask | None,
        bias: ScoreBias | None,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "*B T N E"]:
        """Computes the contexts by ``jaxseq.ops.attention``, which need not store all weights."""
        scale = self._scale(query.shape[-1], memory.keys.shape[-1])
        options: dict[str, Any] = {"mask": mask, "bias": bias, "scale": scale, "implementation": self.implementation}
        if dropout_key is not None:
            options |= {"dropout_rate": self.attention_dropout, "dropout_key": dropout_key}
        return attention(query, memory.keys, memory.values, **options)

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
