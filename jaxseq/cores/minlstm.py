"""The minimal LSTM that is linear in its state."""

import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.recurrent import zero_state
from jaxseq.layers.capture import record_gates
from jaxseq.layers.dense import Dense
from jaxseq.ops import linear_recurrence
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.typing import Features, SegmentIds, Sequence


class MinLSTM(StateCore):
    """minLSTM: ``h_t = f'_t ⊙ h_{t-1} + i'_t ⊙ (x_t W_h + b_h)`` with gates that add up to one.

    ``f_t = σ(x_t W_f + b_f)``, ``i_t = σ(x_t W_i + b_i)``, ``f' = f / (f + i)``, ``i' = i / (f + i)`` (Feng et al.
    2024, "Were RNNs all we needed?", arXiv:2410.01201; without its log-space variant). The quotients are computed
    as ``f' = σ(log f - log i)``, which is defined where both gates underflow.
    """

    def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
        """Zeros."""
        return zero_state(Hidden, batch_shape, self.features, self.param_dtype)

    def mix(self, state: Hidden, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Hidden, Features]:
        """Gates and candidate for the whole input, then one linear recurrence."""
        projected = Dense(3 * self.features, dtype=self.dtype, param_dtype=self.param_dtype)(xs)
        forget, write, candidate = jnp.split(projected.astype(state.h.dtype), 3, axis=-1)
        keep = jax.nn.sigmoid(jax.nn.log_sigmoid(forget) - jax.nn.log_sigmoid(write))
        record_gates(self, lambda: {"f": jax.nn.sigmoid(forget), "i": jax.nn.sigmoid(write)})
        h, hs = linear_recurrence(state.h, keep, (1 - keep) * candidate, segment_ids=segment_ids)
        return Hidden(h), hs
