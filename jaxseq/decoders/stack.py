"""Decoders in a row."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.decoders.decoder import Decoder
from jaxseq.layers.sublayer import last_norm
from jaxseq.typing import Array, Carry, DType, Features, Float, SegmentIds, Sequence


class DecoderStack(Decoder):
    """Positions, if given, then decoders in a row, each with its own memory; with ``norm`` a LayerNorm behind them."""

    decoders: tuple[Decoder, ...]
    positions: Core | None = None
    norm: bool = False
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @property
    def features(self) -> int:
        """The last decoder's."""
        return self.decoders[-1].features

    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> tuple[Any, ...]:
        """Each decoder's."""
        return tuple(decoder.prepare_memory(encoded, segment_ids, summary) for decoder in self.decoders)

    def initial_carry(self, memory: tuple[Any, ...], batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """Each one's."""
        first = () if self.positions is None else self.positions.initial_carry(batch_shape, context)
        pairs = zip(self.decoders, memory, strict=True)
        return (first, *(decoder.initial_carry(own, batch_shape, context) for decoder, own in pairs))

    @nn.compact
    def __call__(
        self, carry: tuple[Carry, ...], xs: Sequence, segment_ids: SegmentIds | None, memory: tuple[Any, ...]
    ) -> tuple[Carry, Features]:
        """Runs them in order."""
        first, *rest = carry
        if self.positions is not None:
            first, xs = self.positions(first, xs, segment_ids)
        after = [first]
        for decoder, before, own in zip(self.decoders, rest, memory, strict=True):
            one, xs = decoder(before, xs, segment_ids, own)
            after.append(one)
        return tuple(after), last_norm(self, xs, segment_ids) if self.norm else xs
