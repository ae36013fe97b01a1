"""A model is parts given to it."""

from jaxseq.models.attention_decoder import AttentionDecoder
from jaxseq.models.bridge import Bridge
from jaxseq.models.decoders import (
    Decoder,
    DecoderBlock,
    DecoderStack,
    RecurrentDecoder,
    attended,
)
from jaxseq.models.language_model import LanguageModel
from jaxseq.models.seq2seq import Encoded, Seq2Seq, alignment
from jaxseq.models.table import make_decoder, make_encoder

__all__ = [
    "AttentionDecoder",
    "Bridge",
    "Decoder",
    "DecoderBlock",
    "DecoderStack",
    "Encoded",
    "LanguageModel",
    "RecurrentDecoder",
    "Seq2Seq",
    "alignment",
    "attended",
    "make_decoder",
    "make_encoder",
]
