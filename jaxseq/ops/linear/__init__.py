"""Recurrences that are linear in their state: elementwise, and with a matrix state for each head."""

from jaxseq.ops.linear.api import (
    ChunkwiseImplementation,
    LinearRecurrenceImplementation,
    delta_rule,
    linear_attention,
    linear_recurrence,
    linear_recurrence_implementation,
    mlstm,
)
from jaxseq.ops.linear.reference import (
    MLSTMState,
    delta_rule_reference,
    linear_attention_reference,
    linear_recurrence_reference,
    mlstm_reference,
)

__all__ = [
    "ChunkwiseImplementation",
    "LinearRecurrenceImplementation",
    "MLSTMState",
    "delta_rule",
    "delta_rule_reference",
    "linear_attention",
    "linear_attention_reference",
    "linear_recurrence",
    "linear_recurrence_implementation",
    "linear_recurrence_reference",
    "mlstm",
    "mlstm_reference",
]
