"""What cores and models are made of beside cores: embeddings, feed-forward layers, attention, encoders."""

from jaxseq.layers.bidirectional import Bidirectional
from jaxseq.layers.capture import capture_weights
from jaxseq.layers.embedding import Embedding
from jaxseq.layers.encoders import EncoderBlock, EncoderStack, OneWay, SelfAttention
from jaxseq.layers.feed_forward import FeedForward
from jaxseq.layers.fusion import Fusion
from jaxseq.layers.memory_attention import (
    ATTENTIONS,
    AdditiveAttention,
    DotAttention,
    GeneralAttention,
    Memory,
    MemoryAttention,
    MultiHeadAttention,
)
from jaxseq.layers.sublayer import Sublayer

__all__ = [
    "ATTENTIONS",
    "AdditiveAttention",
    "Bidirectional",
    "DotAttention",
    "Embedding",
    "EncoderBlock",
    "EncoderStack",
    "FeedForward",
    "Fusion",
    "GeneralAttention",
    "Memory",
    "MemoryAttention",
    "MultiHeadAttention",
    "OneWay",
    "SelfAttention",
    "Sublayer",
    "capture_weights",
]
