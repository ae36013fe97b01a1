"""A recurrence that attends to its memory at every step, from the state before the step (Bahdanau et al. 2015)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.decoders.decoder import AttentionCarry, MemoryDecoder
from jaxseq.layers import Fusion, Memory
from jaxseq.layers.capture import MEMORY_ATTENTION, STATES, keep_last, record, requested
from jaxseq.ops import segments
from jaxseq.typing import Features, SegmentIds, Sequence


class AttentionDecoder(MemoryDecoder):
    """``c_t = Σ_s a_ts v_s``, ``a_t = softmax(e(h_{t-1}, k_s))``; ``h_t = core(fusion(x_t, c_t), h_{t-1})``.

    The attention is part of the recurrence, so time is a ``lax.scan``. The core, or the last core of a stack that has
    one, needs a state h (``Core.hidden``), which is the query; ``fusion`` joins the context to the step's input.

    Raises:
      ValueError: the core has no state h (``DecoderBlock`` works with any core).
    """

    fusion: Fusion

    def run(
        self, carry: AttentionCarry, xs: Sequence, segment_ids: SegmentIds | None, memory: Memory
    ) -> tuple[AttentionCarry, Features]:
        """Scans over time."""
        self.check_carry(carry, memory)
        if self.is_initializing():
            return self._initialize(carry, xs, memory)
        parts = {name: getattr(self, name).unbind() for name in ("core", "attention", "fusion")}
        modules = {name: module for name, (module, _) in parts.items()}
        params = {name: variables for name, (_, variables) in parts.items()}
        keys = jax.random.split(self.make_rng("dropout"), xs.shape[-2]) if self.has_rng("dropout") else None
        ids = None if segment_ids is None else jnp.moveaxis(segment_ids, -1, 0)
        captured = [STATES] if requested(self, STATES) else []
        step = partial(_step, modules, params, memory, captured)
        carry, (ys, weights, states) = lax.scan(step, carry, (jnp.moveaxis(xs, -2, 0), ids, keys))
        if captured:
            time = xs.ndim - 2
            states = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.squeeze(time + 1), 0, time), states)
            keep_last(self, STATES, STATES, {"core": states.get(STATES, {})})
        record(self, MEMORY_ATTENTION, lambda: jnp.moveaxis(weights, 0, -2))
        return carry, jnp.moveaxis(ys, 0, -2)

    def _initialize(self, carry: AttentionCarry, xs: Sequence, memory: Memory) -> tuple[AttentionCarry, Features]:
        """One step, which creates all parameters."""
        query = self.core.hidden(carry.core)[..., None, :]
        context = self.attention(query, memory)
        _, ys = self.core(carry.core, self.fusion(xs[..., :1, :], context), None)
        return carry, jnp.broadcast_to(ys, (*xs.shape[:-1], ys.shape[-1]))


def _step(
    modules: dict[str, Any],
    params: dict[str, Any],
    memory: Memory,
    captured: list[str],
    carry: AttentionCarry,
    inputs: tuple,
) -> tuple[AttentionCarry, tuple]:
    """Attends from the state, joins the context to the input, and runs the core; ``captured`` are collections of it."""
    x, ids, key = inputs
    ids = None if ids is None else ids[..., None]
    core = carry.core if ids is None else modules["core"].reset_states(carry.core, ids)
    query = modules["core"].hidden(core)[..., None, :]
    rngs, own = (None, None) if key is None else ({"dropout": key}, {"dropout": jax.random.fold_in(key, 0)})
    context, weights = modules["attention"].apply(params["attention"], query, memory, method="read", rngs=own)
    joined = modules["fusion"].apply(params["fusion"], x[..., None, :], context)
    (core, ys), states = modules["core"].apply(params["core"], core, joined, ids, rngs=rngs, mutable=captured)
    mean = weights.mean(-3)[..., 0, :].astype(carry.weights.dtype)
    if ids is not None:
        mean = jnp.where(segments.is_real(ids), mean, carry.weights)
    return AttentionCarry(core, mean), (ys[..., 0, :], weights[..., 0, :], states)
