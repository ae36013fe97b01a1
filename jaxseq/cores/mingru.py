"""The minimal gated unit that is linear in its state."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import Core, StateCarry, entering, no_segment, without_padding
from jaxseq.ops import linear_recurrence
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.precision import at_least_float32
from jaxseq.typing import DType, Features, SegmentIds, Sequence


class MinGRU(Core):
    """minGRU: ``z_t = σ(x_t W_z + b_z)``, ``h_t = (1 - z_t) ⊙ h_{t-1} + z_t ⊙ (x_t W_h + b_h)``.

    Neither gate nor candidate sees the state, so the recurrence is linear and can run in parallel over time
    (Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201; without its log-space variant).
    """

    features: int
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> StateCarry:
        """Zeros; a recurrent state needs no room to look back."""
        zeros = jnp.zeros((*batch_shape, self.features), at_least_float32(self.param_dtype))
        return StateCarry(Hidden(zeros), no_segment(batch_shape))

    @nn.compact
    def __call__(
        self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[StateCarry, Features]:
        """Gate and candidate for the whole stretch, then one linear recurrence."""
        xs = without_padding(xs.astype(self.dtype), segment_ids)
        both = nn.Dense(2 * self.features, dtype=self.dtype, param_dtype=self.param_dtype)(xs)
        gate, candidate = jnp.split(both.astype(carry.state.h.dtype), 2, axis=-1)
        update = jax.nn.sigmoid(gate)
        carry = entering(carry, segment_ids)
        h, hs = linear_recurrence(carry.state.h, 1 - update, update * candidate, segment_ids=segment_ids)
        return StateCarry(Hidden(h), carry.segment_id), without_padding(hs.astype(self.dtype), segment_ids)
