"""Masked attention, exact, and its masks and positions."""

from jaxseq.ops.attention import masks, positions
from jaxseq.ops.attention.api import (
    attention,
    attention_implementation,
    attention_reference,
    attention_weights,
    masked_softmax,
)

__all__ = [
    "attention",
    "attention_implementation",
    "attention_reference",
    "attention_weights",
    "masked_softmax",
    "masks",
    "positions",
]
