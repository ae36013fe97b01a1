"""Long short-term memory."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq.cores.core import StateCore
from jaxseq.cores.recurrent import forget_bias_init, recurrent_weights, run_cell, zero_state
from jaxseq.ops import (
    Cell,
    LSTMImplementation,
    Residuals,
    cells,
    cudnn_lstm,
    lstm_implementation,
)
from jaxseq.precision import at_least_float32
from jaxseq.typing import Features, SegmentIds, Sequence


class LSTM(StateCore):
    """LSTM, gates i, f, g, o (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``x_t W + b + h_{t-1} R``; ``c_t = f ⊙ c_{t-1} + i ⊙ g``;
    ``h_t = o ⊙ tanh(c_t)``. ``forget_bias`` initialises the forget gate's bias (Jozefowicz et al. 2015 recommend 1);
    with ``peepholes`` the gates read the cell state (Gers & Schmidhuber 2000). R is block-diagonal over ``num_heads``.
    With ``cell_size`` the cell and c have that many units, and the output is a projection to ``features``,
    ``h_t = (o ⊙ tanh(c_t)) W_p`` (Sak et al. 2014, arXiv:1402.1128; torch's ``proj_size`` is ``features`` here, its
    ``hidden_size`` is ``cell_size``). ``forced_gates``, as ``(("f", 1.0), ("i", 0.0))``, are constant
    (``jaxseq.ops.cells.force_gates``).

    ``implementation`` is "fused", "reference" (the plain scan), "cudnn" (float32 on a CUDA device, one head, no
    peepholes, no forced gates, no projection, no segment ids; first derivatives in reverse mode, no ``vmap``) or
    "auto": cuDNN where it fits (``lstm_implementation``), else fused.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``, ``cell_size`` is not positive or there are several
        heads with it, the implementation is unknown, or cuDNN cannot do the call (the message says why).
    """

    num_heads: int = 1
    residuals: Residuals = "activations"
    forget_bias: float = 1.0
    peepholes: bool = False
    implementation: LSTMImplementation = "auto"
    cell_size: int | None = None
    forced_gates: tuple[tuple[str, float], ...] = ()

    def initial_state(self, batch_shape: tuple[int, ...]) -> cells.LSTMState:
        """Zeros."""
        state = zero_state(cells.LSTMState, batch_shape, self.features, self.param_dtype)
        if self.cell_size is None:
            return state
        if self.cell_size < 1 or self.num_heads != 1:
            raise ValueError(f"cell_size={self.cell_size} must be positive, and num_heads={self.num_heads} must be 1")
        return state._replace(c=jnp.zeros((*batch_shape, self.cell_size), state.c.dtype))

    def mix(
        self, state: cells.LSTMState, xs: Sequence, segment_ids: SegmentIds | None
    ) -> tuple[cells.LSTMState, Features]:
        """Runs the cell along the input with the selected implementation."""
        bias_init = forget_bias_init(self.forget_bias)
        weights = recurrent_weights(self, xs.shape[-1], 4, self.num_heads, bias_init, self.cell_size)
        fits: dict[str, Any] = {"segment_ids": segment_ids, "peepholes": self.peepholes}
        fits["projected"] = self.cell_size is not None
        options: dict[str, Any] = {"residuals": self.residuals, "segment_ids": segment_ids}
        if self.cell_size is not None:
            shape = self.cell_size, self.features
            projection = self.param("projection", nn.initializers.lecun_normal(), shape, self.param_dtype)
            options["output_projection"] = projection.astype(self.dtype)
        asked = self.implementation
        if asked == "cudnn" and self.forced_gates:
            raise ValueError(f'implementation="cudnn" cannot force gates: forced_gates={self.forced_gates}')
        if asked == "auto" and (self.forced_gates or self.residuals != "activations"):  # cuDNN ignores residuals
            asked = "fused"
        chosen: Any = lstm_implementation(state, xs, weights.R, **fits, implementation=asked)
        if chosen == "cudnn":
            return cudnn_lstm(state, xs, *weights, **fits)
        if self.implementation == "auto":  # fused, or the plain scan where the number of steps is free
            chosen = "auto"
        return run_cell(self, self._cell(), state, xs, weights, implementation=chosen, **options)

    def _cell(self) -> Cell:
        """The plain cell, or the peephole cell with its weights bound."""
        if not self.peepholes:
            return cells.force_gates(cells.lstm, self.forced_gates)
        names, size = cells.Peepholes._fields, self.features if self.cell_size is None else self.cell_size
        zeros = nn.initializers.zeros
        own = [self.param(f"peephole_{n}", zeros, (size,), self.param_dtype) for n in names]
        own = [p.astype(at_least_float32(self.param_dtype)) for p in own]
        return cells.force_gates(Partial(cells.peephole_lstm, cells.Peepholes(*own)), self.forced_gates)
