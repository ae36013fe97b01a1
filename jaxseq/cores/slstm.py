"""Scalar long short-term memory with exponential gating."""

import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.recurrent import recurrent_weights, run_cell, zero_state
from jaxseq.ops import Residuals, cells
from jaxseq.typing import Array, DType, Features, SegmentIds, Sequence


class SLSTM(StateCore):
    """sLSTM, gates i, f, g, o (Beck et al. 2024, arXiv:2405.04517, eq. 8-17).

    ``i = exp(·)``, ``f, o = σ(·)``, ``g = tanh(·)`` of ``x_t W + b + h_{t-1} R``; ``c_t = f ⊙ c_{t-1} + i ⊙ g``;
    ``n_t = f ⊙ n_{t-1} + i``; ``h_t = o ⊙ c_t / n_t``; the state holds c and n times ``exp(-m)``,
    ``m_t = max(log f + m_{t-1}, log i)``. The paper allows ``f = exp(·)`` too; this class has σ. R is
    block-diagonal over ``num_heads`` (the paper has 4). The forget gate's bias is initialised evenly spaced from 3 to 6
    over every head, as the mLSTM's of the same paper. ``forced_gates``, as ``(("f", 1.0),)``, are constant
    (``jaxseq.ops.cells.force_gates``; i is an exponential and cannot be 0).

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``.
    """

    num_heads: int = 1
    residuals: Residuals = "activations"
    forced_gates: tuple[tuple[str, float], ...] = ()

    def initial_state(self, batch_shape: tuple[int, ...]) -> cells.SLSTMState:
        """Zeros."""
        return zero_state(cells.SLSTMState, batch_shape, self.features, self.param_dtype)

    def mix(
        self, state: cells.SLSTMState, xs: Sequence, segment_ids: SegmentIds | None
    ) -> tuple[cells.SLSTMState, Features]:
        """Runs the cell along the input."""
        weights = recurrent_weights(self, xs.shape[-1], 4, self.num_heads, self._bias_init)
        cell = cells.force_gates(cells.slstm, self.forced_gates)
        return run_cell(self, cell, state, xs, weights, segment_ids=segment_ids, residuals=self.residuals)

    def _bias_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """Zeros, and 3 to 6 over every head for the forget gate."""
        spread = jnp.linspace(3.0, 6.0, self.features // self.num_heads, dtype=dtype)
        return jnp.zeros(shape, dtype).reshape(4, -1).at[1].set(jnp.tile(spread, self.num_heads)).reshape(shape)
