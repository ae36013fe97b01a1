"""Long short-term memory with layer normalisation inside."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.cores.recurrent import forget_bias_init, orthogonal_blocks, zero_state
from jaxseq.layers.capture import record_gates
from jaxseq.ops import layer_norm, recurrence
from jaxseq.ops.recurrence.cells import LSTMState, forced_preactivations, lstm, sigmoid
from jaxseq.ops.recurrence.reference import recurrent_product, split_gates
from jaxseq.ops.rows import multiply_rows
from jaxseq.typing import Array, Features, Float, SegmentIds, Sequence


class LayerNormLSTM(StateCore):
    """Layer-normalised LSTM, gates i, f, g, o (Ba, Kiros, Hinton 2016, arXiv:1607.06450, eq. 20-22).

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``LN(x_t W) ⊙ α_x + LN(h_{t-1} R) ⊙ α_r + b``, each norm over all four gates
    (and heads) at once; ``c_t = f ⊙ c_{t-1} + i ⊙ g``; ``h_t = o ⊙ tanh(LN(c_t) ⊙ α_c + β_c)``; ``epsilon`` is added to
    every variance. The biases that the paper gives the first two norms are one sum with b. R is block-diagonal over
    ``num_heads``; ``forget_bias`` initialises the forget gate's bias. ``forced_gates``, as ``(("f", 1.0),)``, are
    constant (``jaxseq.ops.cells.force_gates``); the norms still read their sums.

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
        x = self._norm(multiply_rows(xs, kernel.astype(self.dtype)).astype(dtype), input_gain, bias)
        x = x.reshape(*x.shape[:-1], 4, self.features)
        forced = forced_preactivations(lstm, self.forced_gates)

        def sums(recurrent_gain: Array, x: Any, r: Any) -> list[Array]:
            zeros = jnp.zeros(recurrent_gain.shape, recurrent_gain.dtype)
            normed = jnp.split(self._norm(jnp.concatenate(r), recurrent_gain, zeros), 4)
            z = [a + b for a, b in zip(x, normed, strict=True)]
            return [jnp.full_like(a, forced[k]) if k in forced else a for k, a in enumerate(z)]

        def cell(recurrent_gain: Array, cell_gain: Array, cell_bias: Array, state: LSTMState, x: Any, r: Any) -> Any:
            i, f, g, o = sums(recurrent_gain, x, r)
            c = sigmoid(f) * state.c + sigmoid(i) * jnp.tanh(g)
            return LSTMState(sigmoid(o) * jnp.tanh(self._norm(c, cell_gain, cell_bias)), c)

        def gates() -> dict[str, Array]:
            def row(x: Any, r: Any) -> dict[str, Array]:
                i, f, g, o = sums(recurrent_gain, x, r)
                return {"i": sigmoid(i), "f": sigmoid(f), "g": jnp.tanh(g), "o": sigmoid(o)}

            for _ in range(xs.ndim - 2):
                row = jax.vmap(row)
            found = row(split_gates(x[..., 0, :, :]), recurrent_product(state.h, R))
            return {name: value[..., None, :] for name, value in found.items()}

        record_gates(self, gates)
        return recurrence(Partial(cell, recurrent_gain, cell_gain, cell_bias), state, x, R, segment_ids=segment_ids)

    def _norm(
        self, z: Float[Array, "*A C"], gain: Float[Array, " C"], bias: Float[Array, " C"]
    ) -> Float[Array, "*A C"]:
        return layer_norm(z, gain, bias, epsilon=self.epsilon)
