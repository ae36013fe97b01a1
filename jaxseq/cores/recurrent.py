"""What every nonlinear recurrent core shares: one product with the input, then ``jaxseq.ops.recurrence``."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import Core, StateCarry, entering, no_segment, state_dtype, without_padding
from jaxseq.ops import project, recurrence
from jaxseq.ops.cells import Hidden
from jaxseq.typing import Array, DType, Features, SegmentIds, Sequence


class Recurrent(Core):
    """Abstract: ``state_t = cell(x_t W + b, h_{t-1} R, state_{t-1})``, ``y_t = h_t``.

    A subclass gives ``gates`` (how many projections its cell reads), ``state_type`` (a NamedTuple, ``h`` first)
    and ``cell()``. R is block-diagonal over ``num_heads`` (1: dense), each block begun orthogonal.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``.
    """

    gates: ClassVar[int] = 1
    state_type: ClassVar[Any] = Hidden

    features: int
    num_heads: int = 1
    residuals: str = "activations"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @abc.abstractmethod
    def cell(self) -> Callable:
        """The pointwise equation, ``(x, r, state) -> state``; bind own parameters (``self.param``) by Partial."""

    def bias_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """The input's bias, ``[G * F]``."""
        return jnp.zeros(shape, dtype)

    def recurrent_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """The recurrent matrix, ``[N, H, G, H]``: every block orthogonal."""
        heads, size, gates, _ = shape
        keys = jax.random.split(key, (heads, gates))
        blocks = jax.vmap(jax.vmap(lambda k: nn.initializers.orthogonal()(k, (size, size), dtype)))(keys)
        return jnp.swapaxes(blocks, 1, 2)

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> StateCarry:
        """Zeros; a recurrent state needs no room to look back."""
        zeros = jnp.zeros((*batch_shape, self.features), state_dtype(self.param_dtype))
        return StateCarry(self.state_type(*(zeros for _ in self.state_type._fields)), no_segment(batch_shape))

    @nn.compact
    def __call__(
        self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[StateCarry, Features]:
        """Projects the whole stretch at once, then runs the cell along it."""
        heads, size = self.num_heads, self.features // max(self.num_heads, 1)
        if heads < 1 or heads * size != self.features:
            raise ValueError(f"features={self.features} is not divisible by num_heads={heads}")
        width = self.gates * self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (xs.shape[-1], width), self.param_dtype)
        bias = self.param("bias", self.bias_init, (width,), self.param_dtype)
        R = self.param("recurrent", self.recurrent_init, (heads, size, self.gates, size), self.param_dtype)
        xs = without_padding(xs.astype(self.dtype), segment_ids)
        carry = entering(carry, segment_ids)
        state, ys = recurrence(
            self.cell(),
            project(xs, kernel.astype(self.dtype), bias.astype(self.dtype), self.gates),
            R.astype(self.dtype),
            carry.state,
            segment_ids=segment_ids,
            residuals=self.residuals,
        )
        return StateCarry(state, carry.segment_id), without_padding(ys, segment_ids)
