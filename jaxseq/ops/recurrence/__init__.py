"""Nonlinear recurrence over a pointwise cell."""

from jaxseq.ops.recurrence import cells
from jaxseq.ops.recurrence.api import (
    plain_recurrence,
    project,
    recurrence,
    recurrence_reference,
    recurrence_with_projection,
)
from jaxseq.ops.recurrence.cudnn import cudnn_lstm, lstm_implementation
from jaxseq.ops.recurrence.reset_before import gru_reset_before

__all__ = [
    "cells",
    "cudnn_lstm",
    "gru_reset_before",
    "lstm_implementation",
    "plain_recurrence",
    "project",
    "recurrence",
    "recurrence_reference",
    "recurrence_with_projection",
]
