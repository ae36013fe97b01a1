"""The linear recurrent unit: a complex diagonal state."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.cores.core import StateCore
from jaxseq.layers.dense import Dense
from jaxseq.ops import linear_recurrence
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, Float, Key, SegmentIds, Sequence


class Complex(NamedTuple):
    """A complex state as two real arrays."""

    real: Float[Array, "*B H"]
    imaginary: Float[Array, "*B H"]


class LRU(StateCore):
    """LRU: ``h_t = λ ⊙ h_{t-1} + γ ⊙ (B x_t)``, ``y_t = Re(C h_t) + D ⊙ x_t`` with complex h (Orvieto et al. 2023).

    ``λ = exp(-exp(ν) + i exp(θ))`` lies inside the unit circle whatever ν and θ are. At the start λ is uniform on the
    ring ``r_min <= |λ| <= r_max`` with phases in ``[0, max_phase]`` (radians), and ``γ = sqrt(1 - |λ|²)``; ν, θ and
    log γ are learned (arXiv:2303.06349, section 3 and appendix A). The kernel named ``B`` holds B's real part, then
    its imaginary part, along the outputs; ``C`` holds Re C, then -Im C, along the inputs.

    The state has ``state_size`` complex numbers (None: ``features``). Inputs of another width than ``features`` go
    through a linear map to ``features`` first.

    Raises:
      ValueError: not ``0 <= r_min < r_max <= 1``, not ``0 < max_phase <= 2π``, or no state.
    """

    state_size: int | None = None
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    def _size(self) -> int:
        """The number of complex numbers in the state; checks the options."""
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f"the ring needs 0 <= r_min < r_max <= 1, got r_min={self.r_min}, r_max={self.r_max}")
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase={self.max_phase} is not in (0, 2π]")
        size = self.features if self.state_size is None else self.state_size
        if size < 1:
            raise ValueError(f"state_size={size} is not at least 1")
        return size

    def initial_state(self, batch_shape: tuple[int, ...]) -> Complex:
        """Zeros."""
        zeros = jnp.zeros((*batch_shape, self._size()), at_least_float32(self.param_dtype))
        return Complex(zeros, zeros)

    def mix(self, state: Complex, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Complex, Features]:
        """Projects the whole input, then one complex linear recurrence, then projects the output."""
        size, real = self._size(), state.real.dtype
        if xs.shape[-1] != self.features:
            xs = self._linear("input", self.features, 1.0)(xs)
        nu = self.param("nu", self._ring, (size,), self.param_dtype).astype(real)
        theta = self.param("theta", self._phase, (size,), self.param_dtype).astype(real)
        gamma = self.param("log_gamma", lambda *_: _log_gamma(nu).astype(self.param_dtype)).astype(real)
        skip = self.param("D", nn.initializers.normal(1.0), (self.features,), self.param_dtype).astype(self.dtype)

        decay = jnp.exp(lax.complex(-jnp.exp(nu), jnp.exp(theta)))
        driven = self._linear("B", 2 * size, 0.5)(xs).astype(real)
        scale = jnp.broadcast_to(jnp.exp(gamma), driven[..., :size].shape)
        driven = lax.complex(driven[..., :size] * scale, driven[..., size:] * scale)
        decays = jnp.broadcast_to(decay, driven.shape)
        h, hs = linear_recurrence(lax.complex(*state), decays, driven, segment_ids=segment_ids)
        parts = jnp.concatenate([hs.real, hs.imag], axis=-1).astype(self.dtype)
        ys = self._linear("C", self.features, 2.0)(parts) + jnp.broadcast_to(skip, xs.shape) * xs
        return Complex(h.real, h.imag), ys

    def _linear(self, name: str, features: int, scale: float) -> Dense:
        """A linear map with normal entries of variance ``scale`` over the number of inputs."""
        init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
        kwargs = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": init}
        return Dense(features, use_bias=False, name=name, **kwargs)

    def _ring(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DType) -> Float[Array, "H"]:
        """ν for |λ|² uniform between ``r_min²`` and ``r_max²``, that is, λ uniform on the ring."""
        low, high = self.r_min**2, self.r_max**2
        uniform = jax.random.uniform(key, shape, at_least_float32(dtype), 1e-6, 1.0)
        return jnp.log(-0.5 * jnp.log(low + uniform * (high - low))).astype(dtype)

    def _phase(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DType) -> Float[Array, "H"]:
        """θ for a phase uniform between 0 and ``max_phase``."""
        return jnp.log(jax.random.uniform(key, shape, at_least_float32(dtype), 1e-6, 1.0) * self.max_phase).astype(
            dtype
        )


def _log_gamma(nu: Float[Array, "H"]) -> Float[Array, "H"]:
    """``log sqrt(1 - |λ|²)``."""
    return 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))
