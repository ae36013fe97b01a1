"""The LSTM with a matrix memory."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.layers.capture import record_gates
from jaxseq.layers.dense import Dense
from jaxseq.ops import MLSTMState, mlstm
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, SegmentIds, Sequence


class MLSTM(StateCore):
    """The mLSTM cell (Beck et al. 2024, "xLSTM", arXiv:2405.04517, section 2.3), one for every head.

    ``q, v = x W + b``, ``k = x W_k / √H + b_k``; for every head ``i = exp(x·w_i + b_i)`` and ``f = σ(x·w_f + b_f)``;
    ``C = f C + i v kᵀ``, ``n = f n + i k``, ``h = σ(x W_o + b_o) ⊙ C q / max(|nᵀ q|, 1)``. This is the paper's cell
    without the block around it: no projections up and down, no convolution before queries and keys, no norm by head, no
    skip. The forget gate's bias is initialised at 3 to 6 over the heads, the input gate's weights at 0, as in the
    authors' code. ``num_heads=None`` means one head for every 64 features if 64 divides them, else one.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``.
    """

    num_heads: int | None = None

    def _sizes(self) -> tuple[int, int]:
        """Heads and head size, checked."""
        heads = resolve_num_heads(self.features, self.num_heads)
        return heads, self.features // heads

    def initial_state(self, batch_shape: tuple[int, ...]) -> MLSTMState:
        """Zeros."""
        heads, size = self._sizes()
        shapes = (heads, size, size), (heads, size), (heads,)
        return MLSTMState(*(jnp.zeros((*batch_shape, *shape), at_least_float32(self.param_dtype)) for shape in shapes))

    def mix(self, state: MLSTMState, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[MLSTMState, Features]:
        """Projects the whole input, runs the mLSTM recurrence along it, and gates its output."""
        heads, size = self._sizes()

        def dense(name: str, features: int, **options: Any) -> Array:
            return Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, name=name, **options)(xs)

        def by_head(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], heads, size)

        key_bias = self.param("key_bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        key = dense("key", self.features, use_bias=False) / size**0.5
        key = key + jnp.broadcast_to(key_bias.astype(self.dtype), key.shape)
        zeros = nn.initializers.zeros
        log_i = dense("input_gate", heads, kernel_init=zeros).astype(state.C.dtype)
        forget = dense("forget_gate", heads, kernel_init=zeros, bias_init=_three_to_six).astype(state.C.dtype)
        output_gate = jax.nn.sigmoid(dense("output_gate", self.features))
        record_gates(self, lambda: {"i": jnp.exp(log_i), "f": jax.nn.sigmoid(forget), "o": output_gate})
        state, out = mlstm(
            state,
            by_head(dense("query", self.features)),
            by_head(key),
            by_head(dense("value", self.features)),
            log_i,
            jax.nn.log_sigmoid(forget),
            segment_ids=segment_ids,
        )
        ys = output_gate * out.reshape(*xs.shape[:-1], self.features)
        return state, ys


def _three_to_six(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Evenly spaced values from 3 to 6 over the heads."""
    return jnp.linspace(3, 6, shape[0], dtype=dtype)
