"""Recurrence that reads its memory anew at every step, from the state before it (Bahdanau et al. 2015)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.cores import StateCarry
from jaxseq.cores.core import _entering as entering
from jaxseq.decoders.decoder import Attending, MemoryDecoder
from jaxseq.layers import Fusion, Memory
from jaxseq.layers.capture import MEMORY, record
from jaxseq.ops import segments
from jaxseq.typing import Array, Features, Float, SegmentIds, Sequence


class AttentionDecoder(MemoryDecoder):
    """``c_t = Σ_s a_ts v_s``, ``a_t = softmax(e(h_{t-1}, k_s))``; ``h_t = core(fusion(x_t, c_t), h_{t-1})``.

    The context is made of the state before the step and joins the step's input, so that the attention is part of the
    recurrence. ``core`` is any core with a state h, or a stack of them, whose last h asks; ``fusion`` says how the
    context joins.

    Raises:
      ValueError: the core has no state h to ask with (``DecoderBlock`` takes any core).
    """

    fusion: Fusion

    @nn.compact
    def __call__(
        self, carry: Attending, xs: Sequence, segment_ids: SegmentIds | None, memory: Memory
    ) -> tuple[Attending, Features]:
        """Step after step: ask, join, go on."""
        xs = segments.without_padding(xs, segment_ids)
        if self.is_initializing():
            return self._initialise(carry, xs, memory)
        parts = {name: getattr(self, name).unbind() for name in ("core", "attention", "fusion")}
        modules = {name: module for name, (module, _) in parts.items()}
        params = {name: variables for name, (_, variables) in parts.items()}
        keys = jax.random.split(self.make_rng("dropout"), xs.shape[-2]) if self.has_rng("dropout") else None
        ids = None if segment_ids is None else jnp.moveaxis(segment_ids, -1, 0)
        step = partial(_step, modules, params, memory)
        carry, (ys, weights) = lax.scan(step, carry, (jnp.moveaxis(xs, -2, 0), ids, keys))
        record(self, MEMORY, lambda: jnp.moveaxis(weights, 0, -2))
        return carry, jnp.moveaxis(ys, 0, -2)

    def _initialise(self, carry: Attending, xs: Sequence, memory: Memory) -> tuple[Attending, Features]:
        """One step, which makes every parameter."""
        query = state_of(carry.core)[..., None, :]
        context = self.attention(query, memory)
        _, ys = self.core(carry.core, self.fusion(xs[..., :1, :], context), None)
        return carry, jnp.broadcast_to(ys, (*xs.shape[:-1], ys.shape[-1]))


def _step(modules: Any, params: Any, memory: Memory, carry: Attending, inputs: tuple) -> tuple[Attending, tuple]:
    """Ask, join, go on."""
    x, ids, key = inputs
    core = entered(carry.core, ids)
    query = state_of(core)[..., None, :]
    weights = modules["attention"].apply(params["attention"], query, memory, method="weights")
    context = modules["attention"].apply(params["attention"], weights, memory, method="mix")
    joined = modules["fusion"].apply(params["fusion"], x[..., None, :], context)
    rngs = None if key is None else {"dropout": key}
    core, ys = modules["core"].apply(params["core"], core, joined, None if ids is None else ids[..., None], rngs=rngs)
    mean = weights.mean(-3)[..., 0, :].astype(carry.weights.dtype)
    if ids is not None:
        mean = jnp.where((ids != 0)[..., None], mean, carry.weights)
    return Attending(core, mean), (ys[..., 0, :], weights[..., 0, :])


def entered(carry: Any, ids: Any) -> Any:
    """The carry with its states put back to zeros where the step begins another document."""
    if ids is None:
        return carry
    states = lambda node: isinstance(node, StateCarry)  # noqa: E731
    return jax.tree.map(lambda node: entering(node, ids[..., None]) if states(node) else node, carry, is_leaf=states)


def state_of(carry: Any) -> Float[Array, "*B F"]:
    """The last state h in a core's carry.

    Raises:
      ValueError: there is none.
    """
    found = [
        node.state.h
        for node in jax.tree.leaves(carry, is_leaf=lambda node: isinstance(node, StateCarry))
        if isinstance(node, StateCarry) and hasattr(node.state, "h")
    ]
    if not found:
        raise ValueError("the core of an AttentionDecoder needs a state h to ask with; DecoderBlock takes any core")
    return found[-1]
