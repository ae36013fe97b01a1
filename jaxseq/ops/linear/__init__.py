"""Recurrences that are linear in their state: elementwise, and with a matrix for each head."""

from jaxseq.ops.linear.delta_rule import delta_rule, delta_rule_reference
from jaxseq.ops.linear.linear_attention import linear_attention, linear_attention_reference
from jaxseq.ops.linear.linear_recurrence import (
    linear_recurrence,
    linear_recurrence_implementation,
    linear_recurrence_reference,
)
from jaxseq.ops.linear.mlstm import MLSTMState, mlstm, mlstm_reference

__all__ = [
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
