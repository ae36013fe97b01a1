"""Gated linear attention."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.layers.capture import record_gates
from jaxseq.layers.dense import Dense
from jaxseq.layers.layer_norm import LayerNorm
from jaxseq.ops import linear_attention
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Features, Float, SegmentIds, Sequence


class GLAState(NamedTuple):
    """For every head a matrix of keys by values."""

    S: Float[Array, "*B N H Hv"]


class GLA(StateCore):
    """Gated linear attention, one layer (Yang et al. 2023, arXiv:2312.06635, section 4.4).

    ``α_t = σ(x_t W_1 W_2 + b)^(1/16)``, ``S_t = diag(α_t) S_{t-1} + k_tᵀ v_t``, ``o_t = q_t S_t`` for every head; then
    ``y_t = (swish(x_t W_r + b_r) ⊙ LayerNorm(o_t)) W_o``, the norm by head, with ``epsilon``. W_1 has 16 columns. Keys
    are half as wide as values where that divides. ``num_heads=None`` means one head for every 64 features if 64 divides
    them, else one.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``; the gate's rank or temperature is not positive.
    """

    num_heads: int | None = None
    gate_rank: int = 16
    temperature: float = 16.0
    epsilon: float = 1e-6

    def _sizes(self) -> tuple[int, int, int]:
        """Heads, key size and value size, checked."""
        if self.gate_rank < 1 or not self.temperature > 0:
            raise ValueError(f"gate_rank={self.gate_rank} and temperature={self.temperature} must be positive")
        heads = resolve_num_heads(self.features, self.num_heads)
        size = self.features // heads
        return heads, size if size % 2 else size // 2, size

    def initial_state(self, batch_shape: tuple[int, ...]) -> GLAState:
        """Zeros."""
        return GLAState(jnp.zeros((*batch_shape, *self._sizes()), at_least_float32(self.param_dtype)))

    def mix(self, state: GLAState, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[GLAState, Features]:
        """Projects the whole input, runs linear attention along it, and gates its output."""
        heads, key_size, size = self._sizes()

        def dense(name: str, features: int, x: Array, bias: bool = False) -> Array:
            return Dense(features, use_bias=bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)

        def by_head(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

        query, key, value = (
            by_head(dense(name, heads * width, xs))
            for name, width in (("query", key_size), ("key", key_size), ("value", size))
        )
        gate = dense("decay", heads * key_size, dense("decay_low", self.gate_rank, xs), bias=True)
        wide = state.S.dtype
        log_decay = jax.nn.log_sigmoid(by_head(gate).astype(wide)) / self.temperature
        record_gates(self, lambda: {"alpha": jnp.exp(log_decay)})
        S, out = linear_attention(state.S, query, key, value.astype(wide), log_decay, segment_ids=segment_ids)
        norm = LayerNorm(wide, wide, self.epsilon, name="norm")
        out = norm(out).reshape(*xs.shape[:-1], self.features).astype(self.dtype)
        return GLAState(S), dense("out", self.features, jax.nn.swish(dense("gate", self.features, xs, bias=True)) * out)
