"""Pure functions of arrays: equations, gradients, speed. Every fast one keeps a plain ``*_reference``."""

from jaxseq.ops.attention import attention, attention_implementation, attention_reference, attention_weights
from jaxseq.ops.linear_recurrence import linear_recurrence, linear_recurrence_reference
from jaxseq.ops.recurrence import plain_recurrence, project, recurrence, recurrence_reference
from jaxseq.ops.reset_before import gru_reset_before

__all__ = [
    "attention",
    "attention_implementation",
    "attention_reference",
    "attention_weights",
    "gru_reset_before",
    "linear_recurrence",
    "linear_recurrence_reference",
    "plain_recurrence",
    "project",
    "recurrence",
    "recurrence_reference",
]
