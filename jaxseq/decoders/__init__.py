"""Decoders, ``decoder(carry, xs, segment_ids, memory) -> (carry, ys)``: cores that also read a memory."""

from jaxseq.decoders.attention_decoder import AttentionDecoder
from jaxseq.decoders.block import DecoderBlock
from jaxseq.decoders.bridge import Bridge
from jaxseq.decoders.decoder import AttentionCarry, Decoder, MemoryDecoder
from jaxseq.decoders.recurrent import RecurrentDecoder
from jaxseq.decoders.stack import DecoderStack
from jaxseq.decoders.table import make_decoder

__all__ = [
    "AttentionCarry",
    "AttentionDecoder",
    "Bridge",
    "Decoder",
    "DecoderBlock",
    "DecoderStack",
    "MemoryDecoder",
    "RecurrentDecoder",
    "make_decoder",
]
