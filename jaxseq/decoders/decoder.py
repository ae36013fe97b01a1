"""The base classes of decoders: cores that also read a memory. The splitting law holds with the memory as a constant.

memory = decoder.prepare_memory(encoded, segment_ids, summary)  # computes all projections once
carry = decoder.initial_carry(memory, batch_shape, context)
carry, ys = decoder(carry, xs, segment_ids, memory)
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores import Core, StateCarry
from jaxseq.cores.unbound import UnboundMethods
from jaxseq.layers import Memory, MemoryAttention
from jaxseq.ops import segments
from jaxseq.ops.inputs import check_inputs, check_leading, check_leaves
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Carry, Features, Float, SegmentIds, Sequence


class Decoder(UnboundMethods, abc.ABC):
    """Abstract: ``decoder(carry, xs, segment_ids, memory) -> (carry, ys)`` under the splitting law.

    A subclass defines ``run``; the call is final, and checks its arguments and handles padding as ``cores.Core`` does.
    ``features`` (a field or a property) is the width of the output. The memory is any pytree whose leaves lead with the
    batch dimensions.
    """

    unbound_methods: ClassVar[tuple[str, ...]] = ("initial_carry", "map_states", "last_attention_weights", "features")

    @abc.abstractmethod
    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Any:
        """Computes the memory from an encoded sequence and its summary (None without a bridge)."""

    @abc.abstractmethod
    def initial_carry(self, memory: Any, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The initial carry; a cache in it holds ``context`` earlier positions. Works unbound."""

    @abc.abstractmethod
    def run(self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None, memory: Any) -> tuple[Carry, Features]:
        """Continues from ``carry`` over ``xs``, which are zero at padded positions; outputs there are ignored."""

    @abc.abstractmethod
    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: Carry) -> Carry:
        """The carry with ``function`` applied to each recurrent state of the decoder's cores, in order; works unbound.

        ``Core.map_states`` does this for the carry of a core.
        """

    @final
    @nn.compact
    def __call__(
        self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None, memory: Any
    ) -> tuple[Carry, Features]:
        """Continues from ``carry`` over ``xs``; ``segment_ids=None`` continues the carry's document without padding.

        Raises:
          ValueError: ``xs`` or ``segment_ids`` has a wrong shape or dtype, or a leaf of the carry or of the memory does
            not lead with the batch dimensions of ``xs``.
        """
        name = type(self).__name__
        check_inputs(name, xs, segment_ids)
        check_leading(name, "a carry", carry, xs)
        check_leading(name, "a memory", memory, xs)
        carry, ys = self.run(carry, segments.without_padding(xs, segment_ids), segment_ids, memory)
        return carry, segments.without_padding(ys, segment_ids)

    @abc.abstractmethod
    def last_attention_weights(self, carry: Carry) -> Float[Array, "*B S"]:
        """The weights, averaged over heads, with which the last real position attended to the memory; works unbound.

        Pass this method to ``decoding.Coverage``.

        Raises:
          ValueError: the decoder has no attention.
        """


class AttentionCarry(NamedTuple):
    """A core's carry, and the weights (mean over heads) with which the last real position attended to the memory."""

    core: Carry
    weights: Float[Array, "*B S"]


class MemoryDecoder(Decoder):
    """Abstract: a core and attention to the memory. A subclass defines ``run``."""

    core: Core
    attention: MemoryAttention

    @property
    def features(self) -> int:
        """The width of the core's output."""
        return self.core.features

    @final
    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Memory:
        """Projects the encoded sequence to the attention's keys and values."""
        return self.attention.project(encoded, segment_ids)

    @final
    def initial_carry(self, memory: Memory, batch_shape: tuple[int, ...], context: int = 0) -> AttentionCarry:
        """The core's carry, and weights of zero.

        Raises:
          ValueError: the memory has other batch dimensions.
        """
        weights = _no_weights(memory)
        if weights.shape[:-1] != tuple(batch_shape):
            raise ValueError(
                f"{type(self).__name__} needs a memory of batch dimensions {tuple(batch_shape)}, not "
                f"{weights.shape[:-1]} as in its keys {memory.keys.shape}"
            )
        return AttentionCarry(self.core.initial_carry(batch_shape, context), jnp.zeros(weights.shape, weights.dtype))

    @final
    def check_carry(self, carry: Any, memory: Any) -> None:
        """Raise ValueError unless the carry holds weights of this memory; the core checks its own part."""
        name = type(self).__name__
        for what, value, kind in (("a memory", memory, Memory), ("a carry", carry, AttentionCarry)):
            if not isinstance(value, kind):
                raise ValueError(f"{name} needs {what} of type {kind.__name__}, not {type(value).__name__}")
        needed = {"weights": _no_weights(memory)}
        check_leaves(f"{name} is given a carry", {"weights": carry.weights}, needed, "initial_carry")

    @final
    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: AttentionCarry) -> AttentionCarry:
        """The carry with ``function`` applied to each recurrent state of the core."""
        return carry._replace(core=self.core.map_states(function, carry.core))

    @final
    def last_attention_weights(self, carry: AttentionCarry) -> Float[Array, "*B S"]:
        """The attention weights stored in the carry."""
        return carry.weights


def _no_weights(memory: Memory) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the last weights over a memory, ``[*B S]``."""
    return jax.ShapeDtypeStruct(memory.keys.shape[:-2], at_least_float32(memory.keys.dtype))
