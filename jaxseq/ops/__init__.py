"""Pure functions of arrays: equations, gradients, speed. Every fast one keeps a plain ``*_reference``."""

from jaxseq.ops import segments
from jaxseq.ops.attention import (
    attention,
    attention_implementation,
    attention_reference,
    attention_weights,
    masked_softmax,
    masks,
    positions,
)
from jaxseq.ops.convolution import causal_convolution, causal_convolution_reference
from jaxseq.ops.implementations import implementations
from jaxseq.ops.linear import (
    MLSTMState,
    delta_rule,
    delta_rule_reference,
    linear_attention,
    linear_attention_reference,
    linear_recurrence,
    linear_recurrence_implementation,
    linear_recurrence_reference,
    mlstm,
    mlstm_reference,
)
from jaxseq.ops.recurrence import (
    cells,
    cudnn_lstm,
    gru_reset_before,
    lstm_implementation,
    plain_recurrence,
    project,
    recurrence,
    recurrence_reference,
    recurrence_with_projection,
)

__all__ = [
    "MLSTMState",
    "attention",
    "attention_implementation",
    "attention_reference",
    "attention_weights",
    "causal_convolution",
    "causal_convolution_reference",
    "cells",
    "cudnn_lstm",
    "delta_rule",
    "delta_rule_reference",
    "gru_reset_before",
    "implementations",
    "linear_attention",
    "linear_attention_reference",
    "linear_recurrence",
    "linear_recurrence_implementation",
    "linear_recurrence_reference",
    "lstm_implementation",
    "masked_softmax",
    "masks",
    "mlstm",
    "mlstm_reference",
    "plain_recurrence",
    "positions",
    "project",
    "recurrence",
    "recurrence_reference",
    "recurrence_with_projection",
    "segments",
]
