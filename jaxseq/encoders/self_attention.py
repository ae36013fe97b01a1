"""Self-attention without a causal mask."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.layers import MemoryAttention
from jaxseq.ops import segments
from jaxseq.ops.segments import without_padding
from jaxseq.typing import Features, SegmentIds, Sequence


class SelfAttention(nn.Module):
    """Every position attends to all positions of its document; the sequence itself is the memory.

    It is equivariant to permutations: it does not know the order of its inputs unless they encode it (``Positions``).
    """

    attention: MemoryAttention

    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """The contexts; zeros at padded positions."""
        if segment_ids is not None:  # an id used again is another document
            starts = segments.starts(segment_ids)
            count = 1 + jnp.cumsum(starts, axis=-1, dtype=segment_ids.dtype)
            segment_ids = jnp.where(segments.is_real(segment_ids), count, jnp.zeros_like(count))
        ys = self.attention(xs, self.attention.project(xs, segment_ids), segment_ids)
        return without_padding(ys, segment_ids)
