"""Long short-term memory with layer normalisation inside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.cores.core import Core, StateCarry, count_heads, entering, no_segment, without_padding
from jaxseq.cores.recurrent import orthogonal_blocks
from jaxseq.ops import plain_recurrence
from jaxseq.ops.recurrence.cells import LSTMState, sigmoid
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, Float, SegmentIds, Sequence


class LayerNormLSTM(Core):
    """Layer-normalised LSTM, gates i, f, g, o (Ba, Kiros, Hinton 2016, arXiv:1607.06450, eq. 20-22).

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``LN(x_t W) ⊙ α_x + LN(h_{t-1} R) ⊙ α_r + b``, each norm over all four gates
    (and heads) at once; ``c_t = f ⊙ c_{t-1} + i ⊙ g``; ``h_t = o ⊙ tanh(LN(c_t) ⊙ α_c + β_c)``; 1e-6 is added to every
    variance. The biases that the paper gives the first two norms are one sum with b. R is block-diagonal over
    ``num_heads``; ``forget_bias`` is where the forget gate's bias begins. Norms are not pointwise, so this is a plain
    scan.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``.
    """

    features: int
    num_heads: int = 1
    forget_bias: float = 1.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> StateCarry:
        """Zeros; a recurrent state needs no room to look back."""
        zeros = jnp.zeros((*batch_shape, self.features), at_least_float32(self.param_dtype))
        return StateCarry(LSTMState(zeros, zeros), no_segment(batch_shape))

    def _bias_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        return jnp.zeros(shape, dtype).reshape(4, -1).at[1].set(self.forget_bias).reshape(shape)

    @nn.compact
    def __call__(
        self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[StateCarry, Features]:
        """Projects and normalises the whole stretch at once, then runs along it."""
        heads = count_heads(self.features, self.num_heads)
        size, width = self.features // heads, 4 * self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (xs.shape[-1], width), self.param_dtype)
        R = self.param("recurrent", orthogonal_blocks, (heads, size, 4, size), self.param_dtype).astype(self.dtype)
        dtype = carry.state.h.dtype
        input_gain, recurrent_gain, bias, cell_gain, cell_bias = (
            self.param(name, init, (length,), self.param_dtype).astype(dtype)
            for name, init, length in (
                ("input_gain", nn.initializers.ones, width),
                ("recurrent_gain", nn.initializers.ones, width),
                ("bias", self._bias_init, width),
                ("cell_gain", nn.initializers.ones, self.features),
                ("cell_bias", nn.initializers.zeros, self.features),
            )
        )
        carry = entering(carry, segment_ids)
        projected = without_padding(xs.astype(self.dtype), segment_ids) @ kernel.astype(self.dtype)
        x = _norm(projected.astype(dtype), input_gain, bias)

        def step(state: LSTMState, x: Float[Array, "*B GF"]) -> LSTMState:
            h = state.h.astype(self.dtype).reshape(*state.h.shape[:-1], heads, size)
            r = jnp.einsum("...nh,nhgk->...gnk", h, R).reshape(x.shape).astype(x.dtype)
            i, f, g, o = jnp.split(x + _norm(r, recurrent_gain, jnp.zeros_like(bias)), 4, axis=-1)
            c = sigmoid(f) * state.c + sigmoid(i) * jnp.tanh(g)
            return LSTMState(sigmoid(o) * jnp.tanh(_norm(c, cell_gain, cell_bias)), c)

        # Products are kept for the way back, all else is computed again: a third less memory, no slower.
        step = jax.checkpoint(step, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
        state, ys = plain_recurrence(step, carry.state, x, segment_ids=segment_ids)
        return StateCarry(state, carry.segment_id), without_padding(ys.astype(self.dtype), segment_ids)


def _norm(z: Float[Array, "*A C"], gain: Float[Array, " C"], bias: Float[Array, " C"]) -> Float[Array, "*A C"]:
    centred = z - z.mean(-1, keepdims=True)
    scale = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)
    return centred * scale * jnp.broadcast_to(gain, z.shape) + jnp.broadcast_to(bias, z.shape)
