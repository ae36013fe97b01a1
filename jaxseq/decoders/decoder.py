"""Decoders: cores that read a memory. The splitting law holds for them with the memory as a constant.

memory = decoder.prepare_memory(encoded, segment_ids, summary)    # every projection of it, once a sequence
carry = decoder.initial_carry(memory, context)
carry, ys = decoder(carry, xs, segment_ids, memory)
"""

import abc
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.layers import Memory, MemoryAttention
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Carry, Features, Float, SegmentIds, Sequence


class Decoder(nn.Module, abc.ABC):
    """Abstract: ``decoder(carry, xs, segment_ids, memory) -> (carry, ys)``, a core but for the memory.

    ``features`` (a field or a property) is the width of what it puts out. The memory is any pytree whose leaves lead
    with the batch dimensions.
    """

    @abc.abstractmethod
    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Any:
        """What the decoder reads of an encoded sequence and of its summary (None without a bridge)."""

    @abc.abstractmethod
    def initial_carry(self, memory: Any, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The carry before anything was written, able to look ``context`` positions back; works unbound."""

    @abc.abstractmethod
    def __call__(
        self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None, memory: Any
    ) -> tuple[Carry, Features]:
        """Writes a stretch, going on from ``carry``."""


class Attending(NamedTuple):
    """A core's carry, and the weights (mean over heads) by which the last real position read the memory."""

    core: Carry
    weights: Float[Array, "*B S"]


def last_attention_weights(carry: Carry) -> Float[Array, "*B S"]:
    """The last attention's weights in a decoder's carry: what ``decoding.Coverage`` takes.

    Raises:
      ValueError: the decoder attends to nothing.
    """
    found = _attending(carry)
    if not found:
        raise ValueError("this decoder attends to nothing: its carry holds no attention weights")
    return found[-1].weights


def _attending(node: Any) -> list[Attending]:
    if isinstance(node, Attending):
        return [node]
    return [part for child in node for part in _attending(child)] if isinstance(node, tuple) else []


class MemoryDecoder(Decoder):
    """Abstract: a core beside attention over the memory."""

    core: Core
    attention: MemoryAttention

    @property
    def features(self) -> int:
        """The core's."""
        return self.core.features

    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Memory:
        """The attention's keys and values."""
        return self.attention.project(encoded, segment_ids)

    def initial_carry(self, memory: Memory, batch_shape: tuple[int, ...], context: int = 0) -> Attending:
        """The core's, and no weights."""
        weights = jnp.zeros(memory.keys.shape[:-2], at_least_float32(memory.keys.dtype))
        return Attending(self.core.initial_carry(batch_shape, context), weights)
