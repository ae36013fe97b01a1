"""Mamba-2: linear attention with a scalar decay a head, behind a short convolution."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.layers.capture import record_gates
from jaxseq.layers.dense import Dense
from jaxseq.ops import causal_convolution, linear_attention
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, Float, Key, SegmentIds, Sequence

TAPS = 4


class MatrixState(NamedTuple):
    """The state of every head, and the inputs that the short convolution still needs, oldest first."""

    matrix: Float[Array, "*B N H Hv"]
    window: Float[Array, "*B P D"]


class Mamba2(StateCore):
    """Mamba-2: ``S_t = exp(Δ_t a) S_{t-1} + B_t (Δ_t x_t)ᵀ``, ``y_t = S_tᵀ C_t + D x_t``.

    Dao & Gu 2024 (arXiv:2405.21060). ``z, x, B, C, Δ`` are linear maps of the input; x (``expand`` times ``features``
    wide), B and C (``state_size`` wide, shared by all heads) then go through a causal depthwise convolution over 4
    inputs and SiLU. For each head ``Δ = softplus(Δ + b)`` and ``a = -exp(A_log)``. The output is
    ``RMSNorm(y ⊙ SiLU(z)) W_o``, the norm with ``epsilon``. Heads are 64 wide where that divides ``expand · features``,
    else there is one head, unless ``num_heads`` says otherwise. At first -a is uniform between 1 and 16,
    ``softplus(b)`` log-uniform between 0.001 and 0.1.

    Raises:
      ValueError: heads do not divide ``expand · features``, or a size is not positive.
    """

    num_heads: int | None = None
    state_size: int = 64
    expand: int = 2
    epsilon: float = 1e-6

    def _sizes(self) -> tuple[int, int]:
        """Heads and inner width, checked."""
        for name in ("state_size", "expand"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")
        width = self.expand * self.features
        return resolve_num_heads(width, self.num_heads, "expand · features"), width

    def initial_state(self, batch_shape: tuple[int, ...]) -> MatrixState:
        """Zeros."""
        heads, width = self._sizes()
        dtype = at_least_float32(self.param_dtype)
        matrix = jnp.zeros((*batch_shape, heads, self.state_size, width // heads), dtype)
        window = jnp.zeros((*batch_shape, TAPS - 1, width + 2 * self.state_size), dtype)
        return MatrixState(matrix, window)

    def mix(self, state: MatrixState, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[MatrixState, Features]:
        """Projects and convolves the whole input, then one pass of linear attention."""
        heads, width = self._sizes()
        matrix, window = state
        channels = width + 2 * self.state_size
        columns = Dense(
            width + channels + heads, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name="in"
        )(xs)
        gate, mixed, step = jnp.split(columns, [width, width + channels], axis=-1)
        kernel = self.param("convolution", short_kernel, (TAPS, channels), self.param_dtype).astype(self.dtype)
        bias = self.param("convolution_bias", nn.initializers.zeros, (channels,), self.param_dtype)
        window, mixed = causal_convolution(window, mixed, kernel, segment_ids=segment_ids)
        mixed = jax.nn.silu(mixed + jnp.broadcast_to(bias.astype(self.dtype), mixed.shape))
        x, key, query = jnp.split(mixed, [width, width + self.state_size], axis=-1)
        x = x.reshape(*x.shape[:-1], heads, width // heads).astype(matrix.dtype)
        key, query = (jnp.broadcast_to(a[..., None, :], (*step.shape, self.state_size)) for a in (key, query))
        step_bias, log_rate, skip = (
            jnp.broadcast_to(self.param(name, init, (heads,), self.param_dtype).astype(matrix.dtype), step.shape)
            for name, init in (("step_bias", small_steps), ("A_log", log_rates), ("D", nn.initializers.ones))
        )
        step = jax.nn.softplus(step.astype(matrix.dtype) + step_bias)
        log_decay = -jnp.exp(log_rate) * step
        record_gates(self, lambda: {"alpha": jnp.exp(log_decay)})
        matrix, ys = linear_attention(matrix, query, key, step[..., None] * x, log_decay, segment_ids=segment_ids)
        ys = (ys + skip[..., None] * x).reshape(gate.shape) * jax.nn.silu(gate.astype(matrix.dtype))
        norm: dict[str, Any] = {"dtype": matrix.dtype, "param_dtype": matrix.dtype, "force_float32_reductions": False}
        ys = nn.RMSNorm(self.epsilon, **norm, name="norm")(ys).astype(self.dtype)
        ys = Dense(self.features, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name="out")(ys)
        return MatrixState(matrix, window), ys


def short_kernel(key: Key[Array, ""], shape: tuple[int, ...], dtype: DType) -> Float[Array, "J D"]:
    """Uniform between ± the inverse root of the number of taps."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def small_steps(key: Key[Array, ""], shape: tuple[int, ...], dtype: DType) -> Float[Array, "N"]:
    """b for ``softplus(b)`` log-uniform between 0.001 and 0.1."""
    step = jnp.exp(jax.random.uniform(key, shape, at_least_float32(dtype), jnp.log(0.001), jnp.log(0.1)))
    return jnp.log(jnp.expm1(step)).astype(dtype)


def log_rates(key: Key[Array, ""], shape: tuple[int, ...], dtype: DType) -> Float[Array, "N"]:
    """A_log for ``exp(A_log)`` uniform between 1 and 16."""
    return jnp.log(jax.random.uniform(key, shape, at_least_float32(dtype), 1.0, 16.0)).astype(dtype)
