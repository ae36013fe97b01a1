"""Masked attention, exact, and its masks and positions."""

from jaxseq.ops.attention import masks, positions
from jaxseq.ops.attention.api import AttentionImplementation, attention, attention_implementation
from jaxseq.ops.attention.reference import attention_reference, attention_weights, masked_softmax

__all__ = [
    "AttentionImplementation",
    "attention",
    "attention_implementation",
    "attention_reference",
    "attention_weights",
    "masked_softmax",
    "masks",
    "positions",
]
