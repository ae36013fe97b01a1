"""A Transformer's decoder block around any core."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.decoders.decoder import AttentionCarry, MemoryDecoder
from jaxseq.layers import Memory, Sublayer
from jaxseq.ops import segments
from jaxseq.typing import Array, DType, Features, Float, SegmentIds, Sequence


class DecoderBlock(MemoryDecoder):
    """A Transformer's decoder block around any core: core, attention to the memory, feed-forward layer, each residual.

    With ``Attention`` as its core this is the decoder block of Vaswani et al. (2017). ``norm`` and ``dropout`` are
    those of ``Sublayer``.
    """

    feed_forward: nn.Module | None = None
    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    def run(
        self, carry: AttentionCarry, xs: Sequence, segment_ids: SegmentIds | None, memory: Memory
    ) -> tuple[AttentionCarry, Features]:
        """Applies the sublayers; a single step stores its attention weights, a longer call recomputes the last ones."""
        options: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout}
        options |= {"dtype": self.dtype, "param_dtype": self.param_dtype, "epsilon": self.epsilon}
        self.check_carry(carry, memory)
        core, weights = carry

        def mix(xs: Sequence) -> Features:
            nonlocal core
            core, ys = self.core(core, xs, segment_ids)
            return ys

        def attend(xs: Sequence) -> Features:
            nonlocal weights
            if xs.shape[-2] != 1:
                weights = _last_weights(lambda x: self.attention.weights(x, memory), xs, segment_ids, weights)
                return self.attention(xs, memory)
            context, each = self.attention.read(xs, memory)
            weights = _where_real(each.mean(-3)[..., 0, :], segment_ids, weights)
            return context

        xs = Sublayer(name="core_sublayer", **options)(mix, xs, segment_ids)
        xs = Sublayer(name="attention_sublayer", **options)(attend, xs, segment_ids)
        if self.feed_forward is not None:
            xs = Sublayer(name="feed_forward_sublayer", **options)(self.feed_forward, xs, segment_ids)
        return AttentionCarry(core, weights), xs


def _last_weights(
    weights_of: Callable[[Sequence], Float[Array, "*B N #T S"]],
    xs: Sequence,
    segment_ids: SegmentIds | None,
    before: Float[Array, "*B S"],
) -> Float[Array, "*B S"]:
    """The weights (mean over heads) of the last real position, or the previous weights if there is none."""
    if xs.shape[-2] == 0:
        return before
    if segment_ids is None:
        return weights_of(xs[..., -1:, :]).mean(-3)[..., 0, :].astype(before.dtype)
    real = segments.is_real(segment_ids)
    place = jnp.argmax(jnp.where(real, jnp.arange(1, xs.shape[-2] + 1), 0), axis=-1)
    query = jnp.take_along_axis(xs, place[..., None, None], axis=-2)
    after = weights_of(query).mean(-3)[..., 0, :].astype(before.dtype)
    return jnp.where(real.any(-1)[..., None], after, before)


def _where_real(
    after: Float[Array, "*B S"], segment_ids: SegmentIds | None, before: Float[Array, "*B S"]
) -> Float[Array, "*B S"]:
    """The new weights where a single position is real, else the previous weights."""
    after = after.astype(before.dtype)
    return after if segment_ids is None else jnp.where(segments.is_real(segment_ids), after, before)
