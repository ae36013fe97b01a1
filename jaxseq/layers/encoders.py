"""Encoders, ``encoder(xs, segment_ids) -> ys``: they may see the future, and cannot be asked to generate.

A convolutional encoder is ``Bidirectional(Conv(...), Conv(...))``: each direction's taps together are a window around
a position.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.layers.memory_attention import MemoryAttention
from jaxseq.layers.sublayer import Sublayer
from jaxseq.ops import segments
from jaxseq.ops.segments import without_padding
from jaxseq.ops.tiled import at_least_float32
from jaxseq.typing import DType, Features, SegmentIds, Sequence


class OneWay(nn.Module):
    """A core run over whole sequences from a fresh carry: every output knows what came before it."""

    core: nn.Module

    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """The core's outputs."""
        return self.core(self.core.initial_carry(xs.shape[:-2]), xs, segment_ids)[1]


class SelfAttention(nn.Module):
    """Every position attends to all of its document: attention over the sequence itself as the memory.

    Without positions in its inputs it is permutation equivariant: it knows of no order.
    """

    attention: MemoryAttention

    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """Contexts, zeros at padding."""
        if segment_ids is not None:  # an id used again is another document
            starts = segments.starts(segment_ids, segments.no_ids(segment_ids))
            count = 1 + jnp.cumsum(starts, axis=-1, dtype=segment_ids.dtype)
            segment_ids = jnp.where(segments.is_real(segment_ids), count, jnp.zeros_like(count))
        ys = self.attention(xs, self.attention.project(xs, segment_ids), segment_ids)
        return without_padding(ys, segment_ids)


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


def last_norm(module: Any, xs: Sequence, segment_ids: SegmentIds | None) -> Features:
    """A LayerNorm behind a stack, in at least float32, made within the (compact) module."""
    wide = at_least_float32(module.dtype)
    layer = nn.LayerNorm(dtype=wide, param_dtype=module.param_dtype, force_float32_reductions=False, name="norm_out")
    return without_padding(layer(xs.astype(wide)).astype(module.dtype), segment_ids)


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
