"""A sequence of decoders."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxseq.cores import Core, StateCarry
from jaxseq.decoders.decoder import Decoder
from jaxseq.layers import LayerNorm
from jaxseq.typing import Array, Carry, DType, Features, Float, SegmentIds, Sequence


class DecoderStack(Decoder):
    """Decoders, each on the output of the one before and with its own memory.

    ``positions`` (a core such as ``Positions``) is applied to the input; ``norm`` adds a final LayerNorm.
    """

    decoders: tuple[Decoder, ...]
    positions: Core | None = None
    norm: bool = False
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    @property
    def features(self) -> int:
        """The width of the last decoder's output."""
        return self.decoders[-1].features

    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> tuple[Any, ...]:
        """A tuple with the memory of each decoder."""
        return tuple(decoder.prepare_memory(encoded, segment_ids, summary) for decoder in self.decoders)

    def initial_carry(self, memory: tuple[Any, ...], batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The carry of the positions (empty without them), then that of each decoder."""
        first = () if self.positions is None else self.positions.initial_carry(batch_shape, context)
        pairs = zip(self.decoders, memory, strict=True)
        return (first, *(decoder.initial_carry(own, batch_shape, context) for decoder, own in pairs))

    def run(
        self, carry: tuple[Carry, ...], xs: Sequence, segment_ids: SegmentIds | None, memory: tuple[Any, ...]
    ) -> tuple[Carry, Features]:
        """Runs them in order.

        Raises:
          ValueError: carry or memory is not that of as many decoders.
        """
        count = len(self.decoders)
        for what, parts, needed in (("a carry", carry, count + 1), ("a memory", memory, count)):
            if not isinstance(parts, tuple) or len(parts) != needed:
                found = f"one of {len(parts)}" if isinstance(parts, tuple) else type(parts).__name__
                raise ValueError(f"DecoderStack needs {what} that is a tuple of {needed} parts, not {found}")
        first, *rest = carry
        if self.positions is not None:
            first, xs = self.positions(first, xs, segment_ids)
        after = [first]
        for decoder, before, own in zip(self.decoders, rest, memory, strict=True):
            one, xs = decoder(before, xs, segment_ids, own)
            after.append(one)
        if self.norm:
            xs = LayerNorm(self.dtype, self.param_dtype, self.epsilon, name="norm_out")(xs)
        return tuple(after), xs

    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: tuple[Carry, ...]) -> tuple[Carry, ...]:
        """Applies ``function`` to the states of the positions, then of each decoder."""
        first, *rest = carry
        if self.positions is not None:
            first = self.positions.map_states(function, first)
        return (first, *(d.map_states(function, part) for d, part in zip(self.decoders, rest, strict=True)))

    def last_attention_weights(self, carry: tuple[Carry, ...]) -> Float[Array, "*B S"]:
        """The attention weights of the last decoder."""
        return self.decoders[-1].last_attention_weights(carry[-1])
