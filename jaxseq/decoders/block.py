"""A Transformer's decoder block around any core."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.decoders.decoder import Attending, MemoryDecoder
from jaxseq.layers import Memory, Sublayer
from jaxseq.ops import segments
from jaxseq.typing import Array, DType, Features, Float, SegmentIds, Sequence


class DecoderBlock(MemoryDecoder):
    """Core, attention over the memory, feed-forward layer, each in a residual: a Transformer's block around any core.

    With ``Attention`` as its core, the decoder's block of Vaswani et al. (2017), its keys and values of the memory both
    from the encoder. ``norm`` and ``dropout`` stand as in ``Sublayer``.
    """

    feed_forward: nn.Module | None = None
    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, carry: Attending, xs: Sequence, segment_ids: SegmentIds | None, memory: Memory
    ) -> tuple[Attending, Features]:
        """Mixes what was written, reads the memory, bends."""
        options: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout}
        options |= {"dtype": self.dtype, "param_dtype": self.param_dtype}
        core, weights = carry

        def mixed(xs: Sequence) -> Features:
            nonlocal core
            core, ys = self.core(core, xs, segment_ids)
            return ys

        def read(xs: Sequence) -> Features:
            nonlocal weights
            if xs.shape[-2] != 1:
                weights = _last(lambda x: self.attention.weights(x, memory), xs, segment_ids, weights)
                return self.attention(xs, memory)
            context, each = self.attention.read(xs, memory)  # a step: the weights are used, and kept
            weights = _kept(each.mean(-3)[..., 0, :], segment_ids, weights)
            return context

        xs = Sublayer(name="mixed", **options)(mixed, xs, segment_ids)
        xs = Sublayer(name="attended", **options)(read, xs, segment_ids)
        if self.feed_forward is not None:
            xs = Sublayer(name="fed", **options)(self.feed_forward, xs, segment_ids)
        return Attending(core, weights), xs


def _last(weights_of: Any, xs: Sequence, segment_ids: SegmentIds | None, before: Float[Array, "*B S"]) -> Array:
    """The weights (mean over heads) of the last real position; those before where there is none."""
    if xs.shape[-2] == 0:
        return before
    if segment_ids is None:
        return weights_of(xs[..., -1:, :]).mean(-3)[..., 0, :].astype(before.dtype)
    real = segments.is_real(segment_ids)
    place = jnp.argmax(jnp.where(real, jnp.arange(1, xs.shape[-2] + 1), 0), axis=-1)
    query = jnp.take_along_axis(xs, place[..., None, None], axis=-2)
    after = weights_of(query).mean(-3)[..., 0, :].astype(before.dtype)
    return jnp.where(real.any(-1)[..., None], after, before)


def _kept(after: Float[Array, "*B S"], segment_ids: SegmentIds | None, before: Float[Array, "*B S"]) -> Array:
    """The new weights, where the one position is real."""
    after = after.astype(before.dtype)
    return after if segment_ids is None else jnp.where(segments.is_real(segment_ids), after, before)
