"""Parts of models other than cores: embeddings, feed-forward layers, attention over a memory."""

from jaxseq.layers.capture import capture_weights
from jaxseq.layers.embedding import Embedding
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
    "DotAttention",
    "Embedding",
    "FeedForward",
    "Fusion",
    "GeneralAttention",
    "Memory",
    "MemoryAttention",
    "MultiHeadAttention",
    "Sublayer",
    "capture_weights",
]
