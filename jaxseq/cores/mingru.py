"""The minimal gated unit that is linear in its state."""

import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.recurrent import zero_state
from jaxseq.layers.capture import record_gates
from jaxseq.layers.dense import Dense
from jaxseq.ops import linear_recurrence
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.typing import Features, SegmentIds, Sequence


class MinGRU(StateCore):
    """minGRU: ``z_t = σ(x_t W_z + b_z)``, ``h_t = (1 - z_t) ⊙ h_{t-1} + z_t ⊙ (x_t W_h + b_h)``.

    Neither gate nor candidate sees the state, so the recurrence is linear and can run in parallel over time
    (Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201; without its log-space variant).
    """

    def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
        """Zeros."""
        return zero_state(Hidden, batch_shape, self.features, self.param_dtype)

    def mix(self, state: Hidden, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Hidden, Features]:
        """Gate and candidate for the whole input, then one linear recurrence."""
        both = Dense(2 * self.features, dtype=self.dtype, param_dtype=self.param_dtype)(xs)
        gate, candidate = jnp.split(both.astype(state.h.dtype), 2, axis=-1)
        update = jax.nn.sigmoid(gate)
        record_gates(self, lambda: {"z": update})
        h, hs = linear_recurrence(state.h, 1 - update, update * candidate, segment_ids=segment_ids)
        return Hidden(h), hs
