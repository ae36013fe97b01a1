"""Long short-term memory."""

from typing import Any

import flax.linen as nn
from jax.tree_util import Partial

from jaxseq.cores.core import StateCore
from jaxseq.cores.recurrent import forget_bias_init, recurrent_weights, zero_state
from jaxseq.ops import (
    Cell,
    LSTMImplementation,
    Residuals,
    cells,
    cudnn_lstm,
    lstm_implementation,
    recurrence_with_projection,
)
from jaxseq.precision import at_least_float32
from jaxseq.typing import Features, SegmentIds, Sequence


class LSTM(StateCore):
    """LSTM, gates i, f, g, o (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``x_t W + b + h_{t-1} R``; ``c_t = f ⊙ c_{t-1} + i ⊙ g``;
    ``h_t = o ⊙ tanh(c_t)``. ``forget_bias`` initialises the forget gate's bias (Jozefowicz et al. 2015 recommend 1);
    with ``peepholes`` the gates read the cell state (Gers & Schmidhuber 2000). R is block-diagonal over ``num_heads``.
    ``implementation`` is "fused", "reference" (the plain scan), "cudnn" (float32 on a CUDA device, one head, no
    peepholes, no segment ids; first derivatives in reverse mode, no ``vmap``) or "auto": cuDNN where it fits
    (``lstm_implementation``), else fused.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``, the implementation is unknown, or cuDNN cannot do the
        call (the message says why).
    """

    num_heads: int = 1
    residuals: Residuals = "activations"
    forget_bias: float = 1.0
    peepholes: bool = False
    implementation: LSTMImplementation = "auto"

    def initial_state(self, batch_shape: tuple[int, ...]) -> cells.LSTMState:
        """Zeros."""
        return zero_state(cells.LSTMState, batch_shape, self.features, self.param_dtype)

    def mix(
        self, state: cells.LSTMState, xs: Sequence, segment_ids: SegmentIds | None
    ) -> tuple[cells.LSTMState, Features]:
        """Runs the cell along the input with the selected implementation."""
        bias_init = forget_bias_init(self.forget_bias)
        weights = recurrent_weights(self, xs.shape[-1], 4, self.num_heads, bias_init)
        fits: dict[str, Any] = {"segment_ids": segment_ids, "peepholes": self.peepholes}
        asked = self.implementation
        if asked == "auto" and self.residuals != "activations":  # cuDNN ignores residuals
            asked = "fused"
        chosen: Any = lstm_implementation(state, xs, weights.R, **fits, implementation=asked)
        if chosen == "cudnn":
            return cudnn_lstm(state, xs, *weights, **fits)
        options: dict[str, Any] = {"residuals": self.residuals, "implementation": chosen}
        return recurrence_with_projection(self._cell(), state, xs, *weights, segment_ids=segment_ids, **options)

    def _cell(self) -> Cell:
        """The plain cell, or the peephole cell with its weights bound."""
        if not self.peepholes:
            return cells.lstm
        names = cells.Peepholes._fields
        zeros = nn.initializers.zeros
        own = [self.param(f"peephole_{n}", zeros, (self.features,), self.param_dtype) for n in names]
        own = [p.astype(at_least_float32(self.param_dtype)) for p in own]
        return Partial(cells.peephole_lstm, cells.Peepholes(*own))
