"""Long short-term memory with layer normalisation inside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.cores.recurrent import forget_bias_init, orthogonal_blocks, zero_state
from jaxseq.ops import plain_recurrence
from jaxseq.ops.recurrence.cells import LSTMState, forced_preactivations, lstm, sigmoid
from jaxseq.typing import Array, Features, Float, SegmentIds, Sequence


class LayerNormLSTM(StateCore):
    """Layer-normalised LSTM, gates i, f, g, o (Ba, Kiros, Hinton 2016, arXiv:1607.06450, eq. 20-22).

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``LN(x_t W) ⊙ α_x + LN(h_{t-1} R) ⊙ α_r + b``, each norm over all four gates
    (and heads) at once; ``c_t = f ⊙ c_{t-1} + i ⊙ g``; ``h_t = o ⊙ tanh(LN(c_t) ⊙ α_c + β_c)``; ``epsilon`` is added to
    every variance. The biases that the paper gives the first two norms are one sum with b. R is block-diagonal over
    ``num_heads``; ``forget_bias`` initialises the forget gate's bias. ``forced_gates``, as ``(("f", 1.0),)``, are
    constant (``jaxseq.ops.cells.force_gates``); the norms still read their sums. Norms are not pointwise, so this is a
    plain scan.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``.
    """

    num_heads: int = 1
    forget_bias: float = 1.0
    epsilon: float = 1e-6
    forced_gates: tuple[tuple[str, float], ...] = ()

    def initial_state(self, batch_shape: tuple[int, ...]) -> LSTMState:
        """Zeros."""
        return zero_state(LSTMState, batch_shape, self.features, self.param_dtype)

    def mix(self, state: LSTMState, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[LSTMState, Features]:
        """Projects and normalises the whole input at once, then runs along it."""
        heads = resolve_num_heads(self.features, self.num_heads)
        size, width = self.features // heads, 4 * self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (xs.shape[-1], width), self.param_dtype)
        R = self.param("recurrent", orthogonal_blocks, (heads, size, 4, size), self.param_dtype).astype(self.dtype)
        dtype = state.h.dtype
        input_gain, recurrent_gain, bias, cell_gain, cell_bias = (
            self.param(name, init, (length,), self.param_dtype).astype(dtype)
            for name, init, length in (
                ("input_gain", nn.initializers.ones, width),
                ("recurrent_gain", nn.initializers.ones, width),
                ("bias", forget_bias_init(self.forget_bias), width),
                ("cell_gain", nn.initializers.ones, self.features),
                ("cell_bias", nn.initializers.zeros, self.features),
            )
        )
        x = self._norm((xs @ kernel.astype(self.dtype)).astype(dtype), input_gain, bias)

        forced = forced_preactivations(lstm, self.forced_gates)

        def step(state: LSTMState, x: Float[Array, "*B GF"]) -> LSTMState:
            h = state.h.astype(self.dtype).reshape(*state.h.shape[:-1], heads, size)
            r = jnp.einsum("...nh,nhgk->...gnk", h, R).reshape(x.shape).astype(x.dtype)
            z = jnp.split(x + self._norm(r, recurrent_gain, jnp.zeros_like(bias)), 4, axis=-1)
            i, f, g, o = (jnp.full_like(a, forced[k]) if k in forced else a for k, a in enumerate(z))
            c = sigmoid(f) * state.c + sigmoid(i) * jnp.tanh(g)
            return LSTMState(sigmoid(o) * jnp.tanh(self._norm(c, cell_gain, cell_bias)), c)

        # The gradient keeps the products and recomputes the rest: a third less memory, no slower.
        step = jax.checkpoint(step, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
        return plain_recurrence(step, state, x, segment_ids=segment_ids)

    def _norm(
        self, z: Float[Array, "*A C"], gain: Float[Array, " C"], bias: Float[Array, " C"]
    ) -> Float[Array, "*A C"]:
        centred = z - z.mean(-1, keepdims=True)
        scale = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + self.epsilon)
        return centred * scale * jnp.broadcast_to(gain, z.shape) + jnp.broadcast_to(bias, z.shape)
