"""Layers, which know nothing of cores: embeddings, feed-forward layers, norms, attention over a memory."""

from jaxseq.layers.attention_positions import (
    Alibi,
    AttentionPositions,
    NoPositions,
    RelativeBuckets,
    Rotary,
    attention_positions,
)
from jaxseq.layers.capture import StepStates, capture_states, capture_weights
from jaxseq.layers.dense import Dense
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
    "Alibi",
    "AttentionPositions",
    "Dense",
    "DotAttention",
    "Embedding",
    "FeedForward",
    "Fusion",
    "GeneralAttention",
    "LayerNorm",
    "Memory",
    "MemoryAttention",
    "MultiHeadAttention",
    "NoPositions",
    "ProductAttention",
    "Projections",
    "RelativeBuckets",
    "Rotary",
    "StepStates",
    "Sublayer",
    "attention_positions",
    "capture_states",
    "capture_weights",
]
