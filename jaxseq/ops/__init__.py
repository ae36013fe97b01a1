"""Pure functions of arrays: equations, gradients, speed. Every fast one keeps a plain ``*_reference``."""

from jaxseq.ops.attention import (
    attention,
    attention_implementation,
    attention_reference,
    attention_weights,
    masked_softmax,
)
from jaxseq.ops.convolution import causal_convolution, causal_convolution_reference
from jaxseq.ops.cudnn_lstm import cudnn_lstm, lstm_implementation
from jaxseq.ops.delta_rule import delta_rule, delta_rule_reference
from jaxseq.ops.implementations import implementations
from jaxseq.ops.linear_attention import linear_attention, linear_attention_reference
from jaxseq.ops.linear_recurrence import (
    linear_recurrence,
    linear_recurrence_implementation,
    linear_recurrence_reference,
)
from jaxseq.ops.mlstm import MLSTMState, mlstm, mlstm_reference
from jaxseq.ops.recurrence import (
    plain_recurrence,
    project,
    projected_recurrence,
    recurrence,
    recurrence_reference,
)
from jaxseq.ops.reset_before import gru_reset_before

__all__ = [
    "MLSTMState",
    "attention",
    "attention_implementation",
    "attention_reference",
    "attention_weights",
    "causal_convolution",
    "causal_convolution_reference",
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
    "mlstm",
    "mlstm_reference",
    "plain_recurrence",
    "project",
    "projected_recurrence",
    "recurrence",
    "recurrence_reference",
]
