"""Layers, which know nothing of cores: embeddings, feed-forward layers, norms, attention over a memory."""

from jaxseq.layers.capture import capture_weights
from jaxseq.layers.embedding import Embedding
from jaxseq.layers.feed_forward import FeedForward
from jaxseq.layers.fusion import Fusion
from jaxseq.layers.layer_norm import LayerNorm
from jaxseq.layers.memory_attention import (
    ATTENTIONS,
    AdditiveAttention,
    DotAttention,
    GeneralAttention,
    Memory,
    MemoryAttention,
    MultiHeadAttention,
    ProductAttention,
    Projections,
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
    "LayerNorm",
    "Memory",
    "MemoryAttention",
    "MultiHeadAttention",
    "ProductAttention",
    "Projections",
    "Sublayer",
    "capture_weights",
]
