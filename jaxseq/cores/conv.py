"""Causal convolution."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.layers.dense import Dense
from jaxseq.ops import causal_convolution
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Features, Float, SegmentIds, Sequence


class LastInputs(NamedTuple):
    """The last ``P = (kernel_size - 1) · dilation`` inputs, oldest first; zeros before a document."""

    x: Float[Array, "*B P F"]


class Conv(StateCore):
    """Causal convolution ``y_t = Σ_j x_{t - j·dilation} K_j + b`` over ``j < kernel_size``.

    (van den Oord et al. 2016, "WaveNet", arXiv:1609.03499; Bai et al. 2018, arXiv:1803.01271.) Inputs of another
    width than ``features`` are first projected to ``features``, as in WaveNet.

    Raises:
      ValueError: ``kernel_size`` or ``dilation`` is not positive.
    """

    kernel_size: int = 4
    dilation: int = 1

    def initial_state(self, batch_shape: tuple[int, ...]) -> LastInputs:
        """Zeros for the inputs before the first."""
        if self.kernel_size < 1 or self.dilation < 1:
            raise ValueError(f"kernel_size={self.kernel_size} and dilation={self.dilation} must be at least 1")
        shape = (*batch_shape, (self.kernel_size - 1) * self.dilation, self.features)
        return LastInputs(jnp.zeros(shape, at_least_float32(self.param_dtype)))

    def mix(self, state: LastInputs, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[LastInputs, Features]:
        """Convolves the whole input at once."""
        if xs.shape[-1] != self.features:
            precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            xs = Dense(self.features, use_bias=False, name="input", **precision)(xs)
        shape = (self.kernel_size, self.features, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        x, ys = causal_convolution(state.x, xs, kernel, dilation=self.dilation, segment_ids=segment_ids)
        return LastInputs(x), ys + bias.reshape(*(1,) * (ys.ndim - 1), -1)
