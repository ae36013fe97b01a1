"""Encoders in a row, and a Transformer's block around an encoder."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.layers import Sublayer
from jaxseq.layers.sublayer import last_norm
from jaxseq.typing import DType, Features, SegmentIds, Sequence


class EncoderStack(nn.Module):
    """Encoders in a row; with ``norm`` a LayerNorm behind the last (what pre-norm blocks end with)."""

    encoders: tuple[nn.Module, ...]
    norm: bool = False
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """Runs them in order."""
        for encoder in self.encoders:
            xs = encoder(xs, segment_ids)
        return last_norm(self, xs, segment_ids) if self.norm else xs


class EncoderBlock(nn.Module):
    """A residual around an encoder, then one around a feed-forward layer: a Transformer's block around anything.

    With ``norm="post"`` in the order of Vaswani et al. (2017): attention, add and norm, feed-forward, add and norm,
    dropout falling on what each sublayer puts out, before it is added. ``"pre"``: the norm before each sublayer.
    """

    encoder: nn.Module
    feed_forward: nn.Module | None = None
    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """Mixes, then bends."""
        options: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout}
        options |= {"dtype": self.dtype, "param_dtype": self.param_dtype}
        xs = Sublayer(name="mixed", **options)(lambda x: self.encoder(x, segment_ids), xs, segment_ids)
        if self.feed_forward is None:
            return xs
        return Sublayer(name="fed", **options)(self.feed_forward, xs, segment_ids)
