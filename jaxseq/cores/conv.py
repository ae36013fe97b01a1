"""Causal convolution."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores.core import Core, StateCarry, entering, no_segment, without_padding
from jaxseq.ops import causal_convolution
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, Float, SegmentIds, Sequence


class LastInputs(NamedTuple):
    """The last ``P = (kernel_size - 1) · dilation`` inputs, oldest first; zeros before a document."""

    x: Float[Array, "*B P F"]


class Conv(Core):
    """Causal convolution ``y_t = Σ_j x_{t - j·dilation} K_j + b`` over ``j < kernel_size``.

    (van den Oord et al. 2016, "WaveNet", arXiv:1609.03499; Bai et al. 2018, arXiv:1803.01271.) Inputs of another
    width than ``features`` are first brought to it by a matrix, as WaveNet's are.

    Raises:
      ValueError: ``kernel_size`` or ``dilation`` is not positive.
    """

    features: int
    kernel_size: int = 4
    dilation: int = 1
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> StateCarry:
        """Zeros; the convolution looks back over its own taps and no further."""
        if self.kernel_size < 1 or self.dilation < 1:
            raise ValueError(f"kernel_size={self.kernel_size} and dilation={self.dilation} must be at least 1")
        shape = (*batch_shape, (self.kernel_size - 1) * self.dilation, self.features)
        return StateCarry(LastInputs(jnp.zeros(shape, at_least_float32(self.param_dtype))), no_segment(batch_shape))

    @nn.compact
    def __call__(
        self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[StateCarry, Features]:
        """Convolves the whole stretch at once."""
        xs = without_padding(xs.astype(self.dtype), segment_ids)
        if xs.shape[-1] != self.features:
            precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            xs = nn.Dense(self.features, use_bias=False, name="input", **precision)(xs)
        shape = (self.kernel_size, self.features, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        carry = entering(carry, segment_ids)
        state, ys = causal_convolution(carry.state.x, xs, kernel, dilation=self.dilation, segment_ids=segment_ids)
        ys = ys + bias.reshape(*(1,) * (ys.ndim - 1), -1)
        return StateCarry(LastInputs(state), carry.segment_id), without_padding(ys, segment_ids)
