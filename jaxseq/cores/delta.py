"""Gated DeltaNet: the gated delta rule behind short convolutions."""

from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.cores.mamba2 import TAPS, MatrixState, log_rates, short_kernel, small_steps
from jaxseq.layers.capture import record_gates
from jaxseq.layers.dense import Dense
from jaxseq.ops import causal_convolution, delta_rule
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, Float, SegmentIds, Sequence

Decay: TypeAlias = Literal["head", "channel"]
DECAYS: tuple[str, ...] = get_args(Decay)


class Delta(StateCore):
    """Gated DeltaNet's mixer: ``S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ``, ``y_t = S_tᵀ q_t``.

    Yang, Kautz & Hatamizadeh 2024 (arXiv:2412.06464). q, k and v are linear maps of the input that go through a causal
    depthwise convolution over 4 inputs and SiLU; then q is divided by ``sqrt(|q|² + length_epsilon)``, and k alike. For
    each head ``β = σ(x W_β)`` and ``log α = -exp(A_log) softplus(x W_α + b)``. The output is
    ``(RMSNorm(y) ⊙ SiLU(x W_g)) W_o``, each head normalised, with ``epsilon``. Keys and values are
    ``features / num_heads`` wide; ``num_heads=None`` means one head for every 64 features if 64 divides them, else one.
    A_log and b are initialised as in Mamba-2.

    ``decay="channel"`` is the recurrence of Kimi delta attention (Kimi Team 2025, arXiv:2510.26692): α has a number for
    every key channel, ``S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ``, ``log α = -exp(A_log) softplus(x
    W_1 W_2 + b)``, where W_1 has as many columns as a head.

    Raises:
      ValueError: heads do not divide features, or ``decay`` is unknown.
    """

    num_heads: int | None = None
    decay: str = "head"
    epsilon: float = 1e-6
    length_epsilon: float = 1e-6

    def initial_state(self, batch_shape: tuple[int, ...]) -> MatrixState:
        """Zeros."""
        if self.decay not in DECAYS:
            raise ValueError(f"decay={self.decay!r}; known: {', '.join(DECAYS)}")
        heads, dtype = resolve_num_heads(self.features, self.num_heads), at_least_float32(self.param_dtype)
        size = self.features // heads
        matrix = jnp.zeros((*batch_shape, heads, size, size), dtype)
        window = jnp.zeros((*batch_shape, TAPS - 1, 3 * self.features), dtype)
        return MatrixState(matrix, window)

    def mix(self, state: MatrixState, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[MatrixState, Features]:
        """Projects and convolves the whole input, then one pass of the delta rule."""
        heads = resolve_num_heads(self.features, self.num_heads)
        matrix, window = state

        def dense(name: str, features: int, bias: bool = False, dtype: DType = self.dtype) -> Dense:
            return Dense(features, bias, dtype, self.param_dtype, bias_init=small_steps, name=name)

        # The state's precision from here on: normalising a vector near zero amplifies its rounding errors.
        projected = dense("query_key_value", 3 * self.features)(xs).astype(matrix.dtype)
        kernel = self.param("convolution", short_kernel, (TAPS, 3 * self.features), self.param_dtype)
        window, mixed = causal_convolution(window, projected, kernel.astype(matrix.dtype), segment_ids=segment_ids)
        parts = jnp.split(jax.nn.silu(mixed), 3, axis=-1)
        query, key, value = (part.reshape(*part.shape[:-1], heads, self.features // heads) for part in parts)
        beta = jax.nn.sigmoid(dense("beta", heads, dtype=matrix.dtype)(xs))
        rate = jnp.exp(self.param("A_log", log_rates, (heads,), self.param_dtype).astype(matrix.dtype))
        if self.decay == "head":
            step = dense("decay", heads, bias=True, dtype=matrix.dtype)(xs)
            rate = jnp.broadcast_to(rate, step.shape)
        else:
            low = dense("decay_low", self.features // heads, dtype=matrix.dtype)(xs)
            step = dense("decay", self.features, bias=True, dtype=matrix.dtype)(low).reshape(query.shape)
            rate = jnp.broadcast_to(rate[:, None], step.shape)
        log_decay = -rate * jax.nn.softplus(step)
        record_gates(self, lambda: {"beta": beta, "alpha": jnp.exp(log_decay)})
        query, key = (vectors * _inverse_length(vectors, self.length_epsilon) for vectors in (query, key))
        matrix, ys = delta_rule(matrix, query, key, value, beta, log_decay, segment_ids=segment_ids)
        norm: dict[str, Any] = {"dtype": matrix.dtype, "param_dtype": matrix.dtype, "force_float32_reductions": False}
        ys = nn.RMSNorm(self.epsilon, **norm, name="norm")(ys)
        gate = jax.nn.silu(dense("gate", self.features)(xs))
        ys = ys.astype(self.dtype).reshape(gate.shape) * gate
        return MatrixState(matrix, window), dense("out", self.features)(ys)


def _inverse_length(vectors: Float[Array, "*B T N H"], epsilon: float) -> Float[Array, "*B T N 1"]:
    """``1 / sqrt(|v|² + ε)``: scales vectors to length one; vectors near zero stay near zero."""
    return jax.lax.rsqrt((vectors**2).sum(-1, keepdims=True) + epsilon)
