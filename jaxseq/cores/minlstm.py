"""The minimal LSTM that is linear in its state."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import Core, StateCarry, entering, no_segment, without_padding
from jaxseq.ops import linear_recurrence
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.precision import at_least_float32
from jaxseq.typing import DType, Features, SegmentIds, Sequence


class MinLSTM(Core):
    """minLSTM: ``h_t = f'_t ⊙ h_{t-1} + i'_t ⊙ (x_t W_h + b_h)`` with gates that add up to one.

    ``f_t = σ(x_t W_f + b_f)``, ``i_t = σ(x_t W_i + b_i)``, ``f' = f / (f + i)``, ``i' = i / (f + i)`` (Feng et al.
    2024, "Were RNNs all we needed?", arXiv:2410.01201; without its log-space variant). The quotients are computed
    as ``f' = σ(log f - log i)``, which is defined where both gates underflow.
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
        """Gates and candidate for the whole stretch, then one linear recurrence."""
        xs = without_padding(xs.astype(self.dtype), segment_ids)
        projected = nn.Dense(3 * self.features, dtype=self.dtype, param_dtype=self.param_dtype)(xs)
        forget, write, candidate = jnp.split(projected.astype(carry.state.h.dtype), 3, axis=-1)
        keep = jax.nn.sigmoid(jax.nn.log_sigmoid(forget) - jax.nn.log_sigmoid(write))
        carry = entering(carry, segment_ids)
        h, hs = linear_recurrence(carry.state.h, keep, (1 - keep) * candidate, segment_ids=segment_ids)
        return StateCarry(Hidden(h), carry.segment_id), without_padding(hs.astype(self.dtype), segment_ids)
