"""The parameters of nonlinear recurrent cores, and ``jaxseq.ops.recurrence_with_projection`` over them."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import Core, StateCarry, count_heads, entering, no_segment, without_padding
from jaxseq.ops import Residuals, recurrence_with_projection
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, SegmentIds, Sequence


class Recurrent(Core):
    """Abstract: ``state_t = cell(state_{t-1}, x_t W + b, h_{t-1} R)``, ``y_t = h_t``.

    A subclass gives ``gates`` (how many projections its cell reads), ``state_type`` (a NamedTuple, ``h`` first)
    and ``cell()``. R is block-diagonal over ``num_heads`` (1: dense), each block begun orthogonal.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``.
    """

    gates: ClassVar[int] = 1
    state_type: ClassVar[Any] = Hidden

    features: int
    num_heads: int = 1
    residuals: Residuals = "activations"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @abc.abstractmethod
    def cell(self) -> Callable:
        """The pointwise equation, ``(state, x, r) -> state``; bind own parameters (``self.param``) by Partial."""

    def bias_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """The input's bias, ``[G * F]``."""
        return jnp.zeros(shape, dtype)

    def recurrent_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """The recurrent matrix, ``[N, H, G, H]``: every block orthogonal."""
        return orthogonal_blocks(key, shape, dtype)

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> StateCarry:
        """Zeros; a recurrent state needs no room to look back."""
        zeros = jnp.zeros((*batch_shape, self.features), at_least_float32(self.param_dtype))
        return StateCarry(self.state_type(*(zeros for _ in self.state_type._fields)), no_segment(batch_shape))

    @nn.compact
    def __call__(
        self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[StateCarry, Features]:
        """Runs the cell along the stretch."""
        heads = count_heads(self.features, self.num_heads)
        size = self.features // heads
        width = self.gates * self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (xs.shape[-1], width), self.param_dtype)
        bias = self.param("bias", self.bias_init, (width,), self.param_dtype)
        R = self.param("recurrent", self.recurrent_init, (heads, size, self.gates, size), self.param_dtype)
        xs = without_padding(xs.astype(self.dtype), segment_ids)
        carry = entering(carry, segment_ids)
        weights = (kernel.astype(self.dtype), bias.astype(self.dtype), R.astype(self.dtype))
        state, ys = self.run(xs, *weights, carry.state, segment_ids)
        return StateCarry(state, carry.segment_id), without_padding(ys, segment_ids)

    def run(
        self, xs: Sequence, kernel: Array, bias: Array, R: Array, state: Any, segment_ids: SegmentIds | None
    ) -> tuple[Any, Features]:
        """The last state and all outputs."""
        return recurrence_with_projection(
            self.cell(), state, xs, kernel, bias, R, segment_ids=segment_ids, residuals=self.residuals
        )


def orthogonal_blocks(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """A recurrent matrix ``[N, H, G, H]``, each gate's block of each head orthogonal.

    One block at a time: on a CPU XLA gives a batch of factorisations to the threads that wait for it, and two such
    batches at once (two cores' parameters in one program) can wait for each other forever (seen with jax 0.10.2).
    """
    heads, size, gates, _ = shape
    orthogonal = nn.initializers.orthogonal()
    keys = jax.random.split(key, heads * gates)
    blocks = jax.lax.map(lambda k: orthogonal(k, (size, size), at_least_float32(dtype)), keys)
    return jnp.swapaxes(blocks.reshape(heads, gates, size, size), 1, 2).astype(dtype)
