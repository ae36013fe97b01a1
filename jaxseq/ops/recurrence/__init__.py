"""Nonlinear recurrence over a pointwise cell."""

from jaxseq.ops.recurrence import cells
from jaxseq.ops.recurrence.api import (
    RecurrenceImplementation,
    Residuals,
    project,
    recurrence,
    recurrence_with_projection,
)
from jaxseq.ops.recurrence.cells import Cell
from jaxseq.ops.recurrence.cudnn import LSTMImplementation, cudnn_lstm, lstm_implementation
from jaxseq.ops.recurrence.gate_values import gate_values
from jaxseq.ops.recurrence.reference import plain_recurrence, recurrence_reference
from jaxseq.ops.recurrence.reset_before import gru_reset_before

__all__ = [
    "Cell",
    "LSTMImplementation",
    "RecurrenceImplementation",
    "Residuals",
    "cells",
    "cudnn_lstm",
    "gate_values",
    "gru_reset_before",
    "lstm_implementation",
    "plain_recurrence",
    "project",
    "recurrence",
    "recurrence_reference",
    "recurrence_with_projection",
]
