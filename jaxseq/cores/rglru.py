"""Griffin's real-gated linear recurrent unit."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.cores.recurrent import zero_state
from jaxseq.layers.capture import record_gates
from jaxseq.layers.dense import Dense
from jaxseq.ops import linear_recurrence, segments
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, DType, Features, Float, Int, Key, SegmentIds, Sequence

STRENGTH = 8.0


class StartedState(NamedTuple):
    """The hidden state, and 1 once a real position of the document has been read."""

    h: Float[Array, "*B F"]
    started: Int[Array, "*B"]


class RGLRU(StateCore):
    """RG-LRU: ``h_t = a_t ⊙ h_{t-1} + sqrt(1 - a_t²) ⊙ (i_t ⊙ x_t)`` (De et al. 2024, Griffin, arXiv:2402.19427).

    ``r_t = σ(W_a x_t + b_a)``, ``i_t = σ(W_x x_t + b_x)``, ``a_t = exp(-8 softplus(Λ) ⊙ r_t)``, with W_a and W_x
    block-diagonal over ``num_heads`` (one head for every 64 features where that divides, else one, unless given). Λ
    is initialised such that ``exp(-8 softplus(Λ))`` is uniform between 0.9 and 0.999.

    This is the layer alone. Griffin's recurrent block also has linear maps before and after it, a causal convolution
    over 4 steps ahead of it and a GeLU branch that multiplies its output; none of these is included. Inputs of
    another width than ``features`` go through a linear map to ``features`` first.

    With ``unscaled_start`` a document begins with ``h_1 = i_1 ⊙ x_1``, without the factor ``sqrt(1 - a²)``, as in the
    code of RecurrentGemma (Botev et al. 2024, arXiv:2404.07839); the paper's equation has the factor everywhere.

    Raises:
      ValueError: heads do not divide features.
    """

    num_heads: int | None = None
    unscaled_start: bool = False

    def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden | StartedState:
        """Zeros."""
        resolve_num_heads(self.features, self.num_heads)
        state = zero_state(Hidden, batch_shape, self.features, self.param_dtype)
        return StartedState(state.h, jnp.zeros(batch_shape, jnp.int32)) if self.unscaled_start else state

    def mix(
        self, state: Hidden | StartedState, xs: Sequence, segment_ids: SegmentIds | None
    ) -> tuple[Hidden | StartedState, Features]:
        """Gates for the whole input, then one linear recurrence."""
        dtype = state.h.dtype
        if xs.shape[-1] != self.features:
            dense = Dense(self.features, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name="input")
            xs = dense(xs)
        recurrence_gate = jax.nn.sigmoid(self._gate("recurrence_gate", xs).astype(dtype))
        input_gate = jax.nn.sigmoid(self._gate("input_gate", xs).astype(dtype))
        record_gates(self, lambda: {"r": recurrence_gate, "i": input_gate})
        decay = self.param("Lambda", _slow_decay, (self.features,), self.param_dtype).astype(dtype)
        rate = jnp.broadcast_to(-STRENGTH * jax.nn.softplus(decay), xs.shape)
        log_a = rate * recurrence_gate
        scale = _root(-jnp.expm1(2 * log_a))
        if isinstance(state, StartedState):
            first, started = _first_positions(state.started, xs.shape[:-1], segment_ids)
            scale = segments.select(first, jnp.ones_like(scale), scale)
            state = state._replace(started=started)
        driven = scale * input_gate * xs.astype(dtype)
        h, hs = linear_recurrence(state.h, jnp.exp(log_a), driven, segment_ids=segment_ids)
        return state._replace(h=h), hs

    def _gate(self, name: str, xs: Float[Array, "*B T F"]) -> Float[Array, "*B T F"]:
        """``W x + b`` with W block-diagonal over heads."""
        heads = resolve_num_heads(self.features, self.num_heads)
        size = self.features // heads
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        kernel = self.param(f"{name}_kernel", init, (heads, size, size), self.param_dtype).astype(self.dtype)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        out = jnp.einsum("...nh,nhk->...nk", xs.reshape(*xs.shape[:-1], heads, size), kernel)
        return out.reshape(xs.shape) + jnp.broadcast_to(bias.astype(self.dtype), xs.shape)


def _first_positions(
    started: Int[Array, "*B"], shape: tuple[int, ...], segment_ids: SegmentIds | None
) -> tuple[Bool[Array, "*B T"], Int[Array, "*B"]]:
    """The mask of first positions of documents, and ``StartedState.started`` after the input."""
    if segment_ids is None:
        real, starts = jnp.ones(shape, bool), jnp.zeros(shape, bool)
    else:
        real, starts = segments.is_real(segment_ids), segments.starts(segment_ids)
    earlier = started[..., None] + jnp.cumsum(real, axis=-1, dtype=jnp.int32) - real.astype(jnp.int32)
    return starts | (real & (earlier == 0)), jnp.where(real.any(-1), 1, started)


def _slow_decay(key: Key[Array, ""], shape: tuple[int, ...], dtype: DType) -> Float[Array, "F"]:
    """Λ for ``exp(-8 softplus(Λ))`` uniform between 0.9 and 0.999."""
    decay = jax.random.uniform(key, shape, at_least_float32(dtype), 0.9, 0.999)
    return jnp.log(jnp.expm1(-jnp.log(decay) / STRENGTH)).astype(dtype)


def _root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, and a straight line below ``sqrt(tiny)``: its first two derivatives are finite everywhere."""
    floor = jnp.sqrt(jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype))
    steep = x > floor
    return jnp.where(steep, jnp.sqrt(jnp.where(steep, x, jnp.ones_like(x))), x / jnp.sqrt(floor))
